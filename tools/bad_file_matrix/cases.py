"""The cases: each command, each of its inputs, each path in it, each kind of bad file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from tools.bad_file_matrix.commands import COMMANDS, Target, targets
from tools.bad_file_matrix.kinds import KINDS, fits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Case", "cases_of", "inputs_of", "selected"]

_SEPARATOR: Final = "|"

_PLANTED: Final = {
    "export": (".lora_export.lock", ".lora_export.next", ".lora_export.next/.gone.json",
               "reports/bench.json", "engines/base.jetson-orin.trt10.3.0.json", "hf/extra.json"),
    "base": ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
             "chat_template.jinja", "modules.json", "pytorch_model.bin.index.json",
             "model.safetensors.index.json", "adapter_config.json", "lora_export.json"),
    "decoder": ("merge_record.json", "added_tokens.json", "vocab.json", "chat_template.jinja"),
    "adapter": ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                "generation_config.json", "adapter_model.bin", "config.json"),
    "triton": (".lora_export.lock", "one", "config.pbtxt"),
    "bundle_folder": ("report.onnxruntime.json", "engines", "report.json"),
    "merged": ("tokenizer_config.json", "lora_export.json"),
    "place": ("target", "target.onnx_adapter", "target.safetensors", "target.tar", "target.json",
              "target.svg"),
}  # fmt: skip
"""Paths that the valid inputs do not have and commands look at, by how the input's name begins."""

_WRITTEN: Final = ("reports/", ".lora_export.lock", "engines/base")
_CODE: Final = ("lora_export", "run.py")
"""What a bundle's program consists of: it cannot check itself, `bundle verify` does."""


class Case(NamedTuple):
    """One thing to try."""

    command: str
    input: str
    path: str
    kind: str

    def __str__(self) -> str:
        """Return the case as ``--case`` takes it."""
        return _SEPARATOR.join(self)

    @property
    def target(self) -> Target:
        """The command and the input."""
        return Target(self.command, self.input)

    @staticmethod
    def parse(text: str) -> Case:
        """Return the case that a text names."""
        return Case(*text.split(_SEPARATOR))


def inputs_of(words: Sequence[str]) -> list[str]:
    """Return the inputs that command lines name, each once."""
    from tools.bad_file_matrix.inputs import INPUTS

    named: dict[str, None] = {}
    for target in selected(words):
        named[target.input] = None
        line = COMMANDS[target.command].words
        named |= dict.fromkeys(each for each in INPUTS if f"{{w}}/{each}" in line)
    return list(named)


def selected(words: Sequence[str]) -> list[Target]:
    """Return the targets of which a command or an input is named; all without words."""
    every = list(targets())
    unknown = set(words) - {name for each in every for name in each}
    if unknown:
        msg = f"no command and no input: {', '.join(sorted(unknown))}"
        raise SystemExit(msg)
    return [each for each in every if not words or set(words) & set(each)]


def cases_of(pristine: Path, target: Target) -> Iterator[Case]:
    """Yield the cases of a command and an input; every path in its folder, and some that are not.

    A new file in an input is covered without further ado.
    """
    root = pristine / target.input
    found = [""]
    for folder, folders, files in os.walk(root):
        found += [os.path.relpath(f"{folder}/{name}", root) for name in (*folders, *files)]
    for name, more in _PLANTED.items():
        if target.input.startswith(name) and not target.input.startswith("base_hub"):
            found += [each for each in more if each not in found]
    is_program = COMMANDS[target.command].words.startswith("run.py")
    for path in sorted(found):
        if is_program and (path == "" or path.startswith(_CODE)):
            continue
        for name, kind in KINDS.items():
            if fits(kind, root / path):
                yield Case(*target, path, name)
