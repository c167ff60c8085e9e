"""The graph of the base or of an adapter, opened for every mode of export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.files import resolve_inside
from lora_export.core.modes import BATCHED_GRAPH, SWAPPABLE_GRAPH, Mode
from lora_export.exports.pack_reading import read_pack
from lora_export.exports.stacks import width_of
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["open_runner"]


def open_runner(
    export_dir: Path, manifest: Manifest, name: str, *, exact: bool = False
) -> OrtRunner:
    """Open what computes the base or an adapter: a graph of its own, or one that adapters share.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        name: ``base``, or the adapter's name.
        exact: See `OrtRunner`.

    Raises:
        LoraExportError: The graph, its weights or the adapter's pack are damaged or missing.
    """
    stored = stored_adapter(manifest, name)
    return _OPEN[stored.mode](export_dir, manifest, name, exact)


def _own_graph(export_dir: Path, manifest: Manifest, name: str, exact: bool) -> OrtRunner:  # noqa: FBT001  (a row of the table)
    return OrtRunner(resolve_inside(export_dir, manifest.graphs[name].onnx), exact=exact)


def _with_pack(export_dir: Path, manifest: Manifest, name: str, exact: bool) -> OrtRunner:  # noqa: FBT001
    pack = read_pack(export_dir, manifest, name)
    path = resolve_inside(export_dir, manifest.graphs[SWAPPABLE_GRAPH].onnx)
    return OrtRunner(path, adapter=pack, exact=exact)


def _with_row(export_dir: Path, manifest: Manifest, name: str, exact: bool) -> OrtRunner:  # noqa: FBT001
    runner, row = _own_graph(export_dir, manifest, BATCHED_GRAPH, exact), manifest.rows[name]
    return runner.with_row(row, width_of(export_dir, manifest, row))


_OPEN: Final[Mapping[Mode, Callable[[Path, Manifest, str, bool], OrtRunner]]] = {
    Mode.BASE: _own_graph,
    Mode.MERGED: _own_graph,
    Mode.SWAPPABLE: _with_pack,
    Mode.BATCHED: _with_row,
}
