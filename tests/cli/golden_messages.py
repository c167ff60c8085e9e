"""One real message of every error class, and of the mistakes that people make most.

Each case runs a command in a folder with a base, an adapter, a decoder with tied embeddings and an
export; the golden text has the command, its exit code and what it prints on stderr.

Write the golden text again: python -m tests.cli.golden_messages
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from lora_export.cli import run
from lora_export.graph.trace.lengths import fixed_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers.models import TinyModels

__all__ = ["CASES", "GOLDEN", "Case", "message_of", "prepare", "text_of"]

GOLDEN: Final = Path(__file__).with_name("golden") / "messages.md"

_HEAD: Final = """\
# Messages

One real message of every error class, and of frequent mistakes. Written by
`python -m tests.cli.golden_messages`; read it from top to bottom when a message changes.
"""


@dataclass(frozen=True)
class Case:
    """A mistake.

    Attributes:
        kind: The class of the error.
        title: The mistake, in words.
        command: The command line.
        spoil: Prepares the folder.
    """

    kind: str
    title: str
    command: str
    spoil: Callable[[], object] = lambda: None


def _edit(path: str, **changes: object) -> Callable[[], None]:
    """Return a function that changes keys of a JSON file."""

    def edit() -> None:
        file = Path(path)
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _write(path: str, text: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(text)


def _remove(path: str) -> Callable[[], None]:
    return lambda: Path(path).unlink()


def _spoil_bytes(path: str) -> Callable[[], None]:
    """Return a function that changes the last byte of a file."""

    def spoil() -> None:
        raw = bytearray(Path(path).read_bytes())
        raw[-1] ^= 1
        Path(path).write_bytes(raw)

    return spoil


def _fail_verification() -> None:
    file = Path("out/lora_export.json")
    table = json.loads(file.read_text())
    for graph in table["graphs"].values():
        graph["verification"] = "fail"
    file.write_text(json.dumps(table))


CASES: Final = (
    Case("UsageError", "a misspelled command", "verfy out"),
    Case("UsageError", "a misspelled option", "verify out --bas base"),
    Case("UsageError", "a missing option", "export --base base"),
    Case("UsageError", "an unknown target", "export --base base -o new --target jetson-oren"),
    Case("UsageError", "a value out of range", "export --base base -o new --opset 9"),
    Case("UsageError", "an option of another mode",
         "export --base base --adapter adapter -o new --lora-modules query"),
    Case("UsageError", "the same in a recipe", "merge-and-build recipe.yaml",
         _write("recipe.yaml", "base: base\nadapters: [{source: adapter}]\noutput: new\n"
                               "lora_modules: [query]\n")),
    Case("UsageError", "ties without a density",
         "merge --base base --adapter a=adapter --adapter b=adapter --combine ties -o new"),
    Case("UsageError", "an unknown key in a recipe", "merge-and-build recipe.yaml",
         _write("recipe.yaml", "base: base\noutput: new\nadaptors: []\n")),
    Case("UsageError", "a data set without a base", "verify out --dataset test.jsonl"),
    Case("CheckpointError", "an adapter where the base belongs",
         "export --base adapter --adapter adapter -o new"),
    Case("CheckpointError", "an export where the base belongs",
         "export --base out --adapter adapter -o new"),
    Case("CheckpointError", "a checkpoint without weights",
         "export --base base --adapter adapter -o new", _remove("base/model.safetensors")),
    Case("CheckpointError", "a truncated weight file",
         "merge --base base --adapter adapter -o new",
         lambda: os.truncate("base/model.safetensors", 5000)),
    Case("AdapterError", "an adapter of a larger model",
         "merge --base base --adapter wide -o new"),
    Case("AdapterError", "a missing tensor file", "inspect adapter",
         _remove("adapter/adapter_model.safetensors")),
    Case("AdapterError", "an adapter that the export does not have", "remove out other"),
    Case("ExportDirectoryError", "not an export", "verify base"),
    Case("ExportDirectoryError", "a changed file of an export", "verify out",
         _spoil_bytes("out/weights/base.safetensors")),
    Case("ExportDirectoryError", "an output that is in use", "export --base base -o base"),
    Case("BundleError", "not a bundle", "bundle verify notes.tar",
         _write("notes.tar", "only notes\n" * 100)),
    Case("HubError", "a hub id without a network", "inspect nobody/nothing"),
    Case("StorageError", "a file where a directory belongs",
         "merge --base base --adapter adapter -o notes.txt/new", _write("notes.txt", "")),
    Case("UnsupportedError", "a prompt-tuning adapter", "inspect adapter",
         _edit("adapter/adapter_config.json", peft_type="PROMPT_TUNING")),
    Case("FixedLengthError", "a model that is traced for one length (simulated)",
         "export --base base --adapter adapter -o new --opset 21"),
    Case("TiedParameterError", "an adapter of one of two tied weights",
         "add tied-out --adapter head"),
    Case("ParityError", "an adapter without effect", "merge --base base --adapter zero -o new"),
    Case("ParityError", "a bundle of a failed export", "bundle out --target jetson-orin -o b.tar",
         _fail_verification),
    Case("LatencyError", "a graph that is slower than its limit",
         "bench out --max-ratio 0.01 --rounds 10 --max-rounds 10 --no-startup"),
    Case("MissingRuntimeError", "torch is not installed",
         "export --base base --adapter adapter -o new --opset 22"),
    Case("LoraExportError", "a bug (simulated)", "remove out mine"),
)  # fmt: skip


def prepare(tiny: TinyModels, folder: Path) -> None:
    """Make the folder in which cases run: bases, adapters and exports."""
    base = tiny.base("bert", "text-classification")
    shutil.copytree(base, folder / "base")
    shutil.copytree(tiny.adapter(base), folder / "adapter")
    shutil.copytree(tiny.adapter(base, strength=0.0), folder / "zero")
    wide = tiny.base("bert", "text-classification", hidden_size=48)
    shutil.copytree(tiny.adapter(wide), folder / "wide")
    tied = tiny.base("gpt2", "text-generation")
    shutil.copytree(tied, folder / "tied")
    head = tiny.adapter(tied, task="text-generation", target_modules=["wte"])
    shutil.copytree(head, folder / "head")
    for config in folder.glob("*/adapter_config.json"):
        table = json.loads(config.read_text())
        config.write_text(json.dumps({**table, "base_model_name_or_path": None}))
    with contextlib.chdir(folder):
        for line in (
            "export --base base --adapter mine=adapter -o out --quiet",
            "export --base tied -o tied-out --quiet",
        ):
            assert run(shlex.split(line)) == 0


def message_of(case: Case, folder: Path) -> tuple[int, str]:
    """Return the exit code of a case and its message, in a copy of `folder`."""
    handler = signal.getsignal(signal.SIGTERM)
    err, out = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as copy:
        whole = Path(copy) / "x"
        shutil.copytree(folder, whole)
        with (
            contextlib.chdir(whole), contextlib.redirect_stderr(err),
            contextlib.redirect_stdout(out), _broken(case),
        ):  # fmt: skip
            case.spoil()
            try:
                code = run([*shlex.split(case.command), "--quiet"])
            finally:
                signal.signal(signal.SIGTERM, handler)
        verdicts = [line for line in out.getvalue().splitlines() if line.startswith("gate: ")]
        said = "\n".join([*verdicts, err.getvalue()])
        said = said.replace(str(whole.resolve()), ".").replace(str(whole), ".")
    return code, re.sub(r"^Usage: .*$", "Usage: …", said, flags=re.MULTILINE)


def text_of(case: Case, folder: Path) -> str:
    """Return the section of a case."""
    code, said = message_of(case, folder)
    return (
        f"## {case.kind}: {case.title}\n\n```\n$ lora-export {case.command}\n{said}"
        f"(exit code {code})\n```\n"
    )


@contextlib.contextmanager
def _broken(case: Case) -> Iterator[None]:
    """Plant a bug, or hide a package, for the cases that need it."""
    patched: dict[str, tuple[str, BaseException]] = {
        "LoraExportError": ("lora_export.commands.remove.remove", KeyError("weights")),
        "FixedLengthError": (
            "lora_export.graph.graph_export._trace_and_fold",
            fixed_length("FnetModel", "it has a table for 512 positions"),
        ),
    }
    if case.kind in patched:
        target, error = patched[case.kind]
        with _without_cached_graphs(), mock.patch(target, side_effect=error):
            yield
    elif case.kind == "MissingRuntimeError":
        with _without_cached_graphs(), mock.patch("importlib.util.find_spec", return_value=None):
            yield
    else:
        yield


@contextlib.contextmanager
def _without_cached_graphs() -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory() as empty,
        mock.patch.dict(os.environ, {"LORA_EXPORT_CACHE": empty}),
    ):
        yield


def main() -> None:
    """Write the golden text."""
    from tests.helpers.models import TinyModels

    with tempfile.TemporaryDirectory() as made:
        models = Path(made) / "models"
        models.mkdir()
        folder = Path(made) / "folder"
        folder.mkdir()
        prepare(TinyModels(models), folder)
        GOLDEN.write_text("\n".join([_HEAD, *(text_of(case, folder) for case in CASES)]), "utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
