"""The valid inputs: each is made once, by a function with the input's name.

``python -m tools.bad_file_matrix.inputs FOLDER [NAME ...]`` runs in a process of its own, because
torch starts threads, which the process that forks must not have.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.commands.outcome import Outcome

__all__ = ["HUB", "INPUTS", "NEEDED", "make_inputs"]

HUB: Final = "base_hub"
"""The input that is a cache of the hub: commands name the repository in it."""

_TASK: Final = "text-classification"
_TEXT: Final = "text-generation"


def base(world: Path) -> None:
    from tests.helpers.models import save_tiny_base

    save_tiny_base("bert", world / "base", _TASK, tokenizer=True)


def base_sharded(world: Path) -> None:
    from tests.helpers.models import save_tiny_base

    save_tiny_base("bert", world / "base_sharded", _TASK, max_shard_size="60KB")


def base_torch(world: Path) -> None:
    """A checkpoint of two pickled files with an index, as older ones are."""
    import torch
    from safetensors.torch import load_file

    folder = world / "base_torch"
    folder.mkdir()
    shutil.copy(world / "base" / "config.json", folder)
    tensors = load_file(world / "base" / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{index:05}-of-00002.bin"
        torch.save({name: tensors[name].clone() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    table = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(table))


def base_hub(world: Path) -> None:
    """A repository in the cache of the hub: a snapshot of links to blobs."""
    repository = world / "base_hub" / "hub" / "models--tiny--bert"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "blobs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for index, path in enumerate(sorted((world / "base").iterdir())):
        shutil.copy(path, repository / "blobs" / f"{index:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{index:040x}")


def base_sentence(world: Path) -> None:
    """A sentence-transformers model: pooling, a dense layer and normalization."""
    from tests.helpers.models import save_tiny_base
    from tests.helpers.sentences import save_sentences

    plain = save_tiny_base("bert", world / "plain", "feature-extraction", tokenizer=True)
    save_sentences(plain, world / "base_sentence", "mean_tokens", dense=8)
    shutil.rmtree(plain)


def decoder(world: Path) -> None:
    from tests.helpers.models import save_tiny_base
    from tests.helpers.own_tokenizer import save_base_tokenizer

    save_tiny_base("llama", world / "decoder", _TEXT)
    save_base_tokenizer(world / "decoder")


def adapter(world: Path) -> None:
    _save_adapter(world, "adapter", seed=1)


def adapter_other(world: Path) -> None:
    _save_adapter(world, "adapter_other", seed=2, r=3)


def adapter_torch(world: Path) -> None:
    """The same adapter, pickled."""
    import torch
    from safetensors.torch import load_file

    folder = world / "adapter_torch"
    folder.mkdir()
    shutil.copy(world / "adapter" / "adapter_config.json", folder)
    tensors = load_file(world / "adapter" / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")


def adapter_decoder(world: Path) -> None:
    """An adapter with a tokenizer and generation settings of its own."""
    from tests.helpers.models import save_tiny_adapter

    folder = world / "adapter_decoder"
    save_tiny_adapter(world / "decoder", folder, task=_TEXT, labels_count=None)
    for path in sorted((world / "decoder").glob("*token*")):
        shutil.copy(path, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def dataset(world: Path) -> None:
    (world / "dataset").mkdir()
    rows = [{"text": f"w{i} w{i + 1}", "label": i % 3} for i in range(3, 9)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (world / "dataset" / "rows.jsonl").write_text(text)


def recipe(world: Path) -> None:
    import yaml

    table = {
        "base": "../base",
        "adapters": [{"name": "one", "source": "../adapter"}],
        "task": _TASK,
        "output": "../../out/export",
        "targets": ["jetson-orin"],
        "profiles": [{"batch": [1, 1, 8], "sequence": [1, 8, 32]}],
        "verify": {"dataset": "../dataset/rows.jsonl"},
        "latency": {"enabled": False, "length": 16},
        "bundle": {"file": "../../out/bundle.tar"},
        "triton": {"repository": "../../out/repository"},
    }
    (world / "recipe").mkdir()
    (world / "recipe" / "recipe.yaml").write_text(yaml.safe_dump(table))


def export_merged(world: Path) -> None:
    _build(world, "export_merged", mode="merged")
    _report(world / "export_merged")


def export_swappable(world: Path) -> None:
    _build(world, "export_swappable", mode="swappable")


def export_batched(world: Path) -> None:
    _build(world, "export_batched", mode="batched")


def export_decoder(world: Path) -> None:
    from tests.helpers.builds import build

    output = world / "export_decoder"
    build(
        world / "decoder", {"one": world / "adapter_decoder"}, output,
        task=_TEXT, verify={"enabled": True},
    )  # fmt: skip


def export_engines(world: Path) -> None:
    """A merged export with engines and their records, by the double of TensorRT."""
    import pytest

    from lora_export.cli import run
    from tests.helpers.double import install_double

    _build(world, "export_engines", mode="merged")
    with pytest.MonkeyPatch.context() as patch:
        install_double(patch)
        code = run(["build", str(world / "export_engines"), "--target", "auto", "--refit",
                    "--profile", "batch=1:1:2,sequence=1:8:16", "--quiet"])  # fmt: skip
    assert code == 0  # noqa: S101


def merged(world: Path) -> None:
    """A merged checkpoint with the record of the merge."""
    from lora_export.cli import run

    code = run(["merge", "--base", str(world / "base"), "--adapter", f"one={world / 'adapter'}",
                "--out", str(world / "merged"), "--quiet"])  # fmt: skip
    assert code == 0  # noqa: S101


def bundle(world: Path) -> None:
    from lora_export.bundle.device_bundle import bundle_export

    (world / "bundle").mkdir()
    bundle_export(world / "export_merged", "jetson-orin", world / "bundle" / "bundle.tar")


def bundle_folder(world: Path) -> None:
    from lora_export.bundle.packing import unpack

    unpack(world / "bundle" / "bundle.tar", world / "bundle_folder")


def triton_merged(world: Path) -> None:
    _write_triton(world, "triton_merged", "export_merged")


def triton_swappable(world: Path) -> None:
    _write_triton(world, "triton_swappable", "export_swappable")


def graph(world: Path) -> None:
    """A graph of the base by another exporter, its weights in a file beside it."""
    import onnx

    from tests.helpers.foreign import export_tiny

    folder = world / "graph"
    folder.mkdir()
    whole = export_tiny(world / "base", world / "whole.onnx", _TASK, dynamo=True)
    model = onnx.load(whole)
    for path in world.glob("whole.onnx*"):
        path.unlink()
    onnx.save_model(
        model, folder / "model.onnx",
        save_as_external_data=True, location="model.onnx.data", size_threshold=0,
    )  # fmt: skip


def graph_cache(world: Path) -> None:
    """The folder of traced graphs, filled by a build."""
    from tests.helpers.builds import build

    os.environ["LORA_EXPORT_CACHE"] = str(world / "graph_cache")
    for base, adapter, settings, more in (
        ("base", "adapter", {}, {}),
        ("base_sentence", "adapter", {"task": "sentence-similarity"}, {"drop": ["classifier.*"]}),
        ("decoder", "adapter_decoder", {"task": _TEXT}, {}),
    ):
        one = {"source": str(world / adapter), **more}
        build(world / base, {"one": one}, world / "thrown_away", **settings)
        shutil.rmtree(world / "thrown_away")


def place(world: Path) -> None:
    """A folder for outputs, in which something may be in the way."""
    (world / "place").mkdir()
    (world / "place" / "README").write_text("not an output\n")


def baseline(world: Path) -> None:
    from lora_export.cli import run

    (world / "baseline").mkdir()
    file = str(world / "baseline" / "bench.json")
    code = run(["bench", str(world / "export_merged"), "--length", "4", "--rounds", "5",
                "--no-startup", "--quiet", "--baseline", file, "--update-baseline",
                "--report", str(world / "thrown_away.json")])  # fmt: skip
    (world / "thrown_away.json").unlink()
    assert code == 0  # noqa: S101


def fleet(world: Path) -> None:
    """A fleet, its plan, and the report of its store."""
    import yaml

    from lora_export.cli import run

    table = {
        "bases": {"tiny": {"path": "../base", "task": _TASK}},
        "adapters": [{"base": "tiny", "path": "../adapter"}],
        "store": "../../out/store",
    }
    (world / "fleet").mkdir()
    file = world / "fleet" / "fleet.yaml"
    file.write_text(yaml.safe_dump(table))
    code = run(["fleet", "plan", str(file), "-o", str(world / "fleet" / "plan.json"), "--quiet"])
    assert code == 0  # noqa: S101
    report = {"counts": {"done": 1}, "rows": [], "running": False, "store": "store"}
    (world / "fleet" / "report.json").write_text(json.dumps(report))


INPUTS: Final[dict[str, Callable[[Path], None]]] = {
    each.__name__: each
    for each in (
        base, base_sharded, base_torch, base_hub, base_sentence, decoder, adapter, adapter_other,
        adapter_torch, adapter_decoder, dataset, recipe, graph_cache, export_merged,
        export_swappable, export_batched, export_decoder, export_engines, merged, bundle,
        bundle_folder, triton_merged, triton_swappable, graph, baseline, place, fleet,
    )
}  # fmt: skip
"""Each input's folder, and what makes it; in the order in which they are made."""

NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "base_torch": ("base",),
    "base_hub": ("base",),
    "adapter": ("base",),
    "adapter_other": ("base",),
    "adapter_torch": ("adapter",),
    "adapter_decoder": ("decoder",),
    "recipe": ("adapter", "dataset", "graph_cache"),
    "graph_cache": ("adapter", "base_sentence", "adapter_decoder"),
    "export_merged": ("adapter", "graph_cache"),
    "export_swappable": ("adapter", "adapter_other", "graph_cache"),
    "export_batched": ("adapter", "adapter_other", "graph_cache"),
    "export_decoder": ("adapter_decoder", "graph_cache"),
    "export_engines": ("adapter", "graph_cache"),
    "merged": ("adapter",),
    "bundle": ("export_merged",),
    "bundle_folder": ("bundle",),
    "triton_merged": ("export_merged",),
    "triton_swappable": ("export_swappable",),
    "graph": ("adapter",),
    "baseline": ("export_merged",),
    "place": ("export_merged", "bundle"),
    "fleet": ("adapter",),
}
"""The inputs that an input is made from."""


def make_inputs(world: Path, names: Sequence[str]) -> None:
    """Make inputs in the folder `world` with all that they need; those that are there stay."""
    wanted = set(names)
    for name in reversed(INPUTS):
        if name in wanted:
            wanted |= set(NEEDED.get(name, ()))
    os.environ["LORA_EXPORT_CACHE"] = str(world / "graph_cache")
    for name, make in INPUTS.items():
        if name in wanted and not (world / f".{name}").exists():
            shutil.rmtree(world / name, ignore_errors=True)
            make(world)
            (world / f".{name}").touch()


def _save_adapter(world: Path, name: str, **settings: Any) -> None:
    from tests.helpers.models import save_tiny_adapter

    save_tiny_adapter(world / "base", world / name, **settings)


def _build(world: Path, name: str, **settings: Any) -> Outcome:
    from tests.helpers.builds import build

    adapters = {"one": world / "adapter"}
    if settings["mode"] != "merged":
        adapters["two"] = world / "adapter_other"
    return build(
        world / "base", adapters, world / name, **{"verify": {"enabled": True}, **settings}
    )


def _report(export: Path) -> None:
    from lora_export.cli import run

    assert run(["report", str(export), "--quiet"]) == 0  # noqa: S101


def _write_triton(world: Path, name: str, export: str) -> None:
    from lora_export.cli import run

    code = run(["triton", str(world / export), "--repository", str(world / name), "--text",
                "--quiet"])  # fmt: skip
    assert code == 0  # noqa: S101


def main(words: Sequence[str]) -> None:
    """Make the inputs that `words` name after the folder; all without a name."""
    world = Path(words[0])
    world.mkdir(parents=True, exist_ok=True)
    make_inputs(world, words[1:] or list(INPUTS))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1:])
