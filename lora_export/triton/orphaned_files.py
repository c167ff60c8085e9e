"""Files of a served export that its index no longer names."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import InputError
from lora_export.triton.graph_io import read_interface
from lora_export.triton.serving.index import read_index

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["remove_orphans"]

_OURS: Final = re.compile(r".+-[0-9a-f]{12}\.(onnx|safetensors)")
"""What is put beside an index under the name of its content; nothing else is ever deleted."""


def remove_orphans(folder: Path) -> None:
    """Delete what the index of `folder` does not name, nor a graph that it names read.

    A server that has opened a file keeps it until it closes it. Where a graph that is named cannot
    be read, and what it needs is not known, everything stays.
    """
    index = read_index(folder)
    named = {index.graph, *(each.file for each in index.adapters.values() if each.file)}
    try:
        read = {
            file
            for each in named
            if each.endswith(".onnx")
            for file in read_interface(folder / each).files
        }
    except InputError:
        return
    kept = {folder / each for each in named | read}
    for path in sorted(folder.rglob("*")):
        if path not in kept and _OURS.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):  # the index is written: the next change does it
                path.unlink()
