"""Two exports of one base: with one adapter, and with two."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.cli.running import HEAVY, snapshot

if TYPE_CHECKING:
    from pathlib import Path


TASK = "text-classification"
LIGHT = (*HEAVY, "onnxruntime", "tokenizers", "scipy")
"""What `add` and `remove` do without."""


class Both(NamedTuple):
    base: Path
    first: Path
    second: Path
    alone: Path
    together: Path


def files_of(export: Path) -> dict[str, bytes]:
    """Return all files but the manifest."""
    return {n: data for n, data in snapshot(export).items() if n != "lora_export.json"}
