"""The graph of the base or of an adapter, opened for every mode of export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.files import resolve_inside
from lora_export.core.modes import BATCHED_GRAPH, SWAPPABLE_GRAPH
from lora_export.exports.packs import read_pack
from lora_export.exports.stacks import width_of
from lora_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["open_runner"]


def open_runner(root: Path, manifest: Manifest, name: str) -> OrtRunner:
    """Open what computes the base or an adapter: a graph of its own, or one that adapters share.

    Args:
        root: The export directory.
        manifest: Its manifest.
        name: ``base``, or the adapter's name.

    Raises:
        LoraExportError: The graph, its weights or the adapter's pack are damaged or missing.
    """
    if (row := manifest.rows.get(name)) is not None:
        runner = OrtRunner(resolve_inside(root, manifest.graphs[BATCHED_GRAPH].onnx))
        return runner.with_row(row, width_of(root, manifest, row))
    if name in manifest.graphs:
        return OrtRunner(resolve_inside(root, manifest.graphs[name].onnx))
    pack = read_pack(root, manifest, name)
    return OrtRunner(resolve_inside(root, manifest.graphs[SWAPPABLE_GRAPH].onnx), adapter=pack)
