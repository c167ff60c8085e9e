"""Files of a served export that its index no longer names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_export.deploy.triton_graph import read_interface

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["named_files", "remove_orphans"]


def named_files(index: Path) -> set[Path]:
    """Return the files that an index names, and those that its graphs read."""
    table = json.loads(index.read_bytes())
    folder = index.parent
    named = {table["graph"], table["weights"]}
    named |= {line["file"] for line in table["adapters"].values() if line["file"]}
    read = {
        file
        for each in named
        if each.endswith(".onnx")
        for file in read_interface(folder / each).files
    }
    return {folder / each for each in named | read} | {index}


def remove_orphans(index: Path) -> None:
    """Delete what is not named; a server that has opened a file keeps it until it closes it."""
    kept = named_files(index)
    for path in sorted(index.parent.rglob("*")):
        if path.is_file() and path not in kept:
            path.unlink(missing_ok=True)
