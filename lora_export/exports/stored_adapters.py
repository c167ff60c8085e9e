"""The stored form of an adapter in an export: its own graph, a pack or a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import AdapterError
from lora_export.core.graph_forms import DEFAULT_FORM
from lora_export.core.modes import (
    BASE_GRAPH,
    BATCHED_GRAPH,
    SHARED_GRAPHS,
    SHARED_MODES,
    SWAPPABLE_GRAPH,
    Mode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.core.graph_forms import GraphForm
    from lora_export.core.manifest import GraphRecord, Manifest, PackRecord, RowRecord

__all__ = ["StoredAdapter", "find_stored", "form_of", "mode_of", "shared_graphs", "stored_adapter"]


@dataclass(frozen=True)
class StoredAdapter:
    """The base or an adapter, as an export holds it.

    Attributes:
        mode: The mode of the graph that runs it.
        graph: That graph's name.
        record: What the manifest says of it, its verification and golden outputs among them.
        weights: Weight files that only its graph has.
        pack: Its pack, a file of safetensors.
        row: Its row in the stacks.
        files: All files that only it has, its golden outputs left out.
        place: Where it is, as a person is told.
    """

    mode: Mode
    graph: str
    record: GraphRecord | PackRecord | RowRecord
    weights: tuple[str, ...] = ()
    pack: str | None = None
    row: int | None = None
    files: tuple[str, ...] = ()
    place: str = ""


def form_of(manifest: Manifest) -> GraphForm:
    """Return the form of the graphs of an export."""
    return manifest.base_graph.form or DEFAULT_FORM


def mode_of(manifest: Manifest) -> Mode:
    """Return the mode in which an export holds its adapters."""
    return next((each for each in SHARED_MODES if each in manifest.graphs), Mode.MERGED)


def shared_graphs(manifest: Manifest) -> tuple[str, ...]:
    """Return the graphs of an export that run several adapters."""
    return tuple(name for name in SHARED_GRAPHS if name in manifest.graphs)


def find_stored(manifest: Manifest, name: str) -> StoredAdapter | None:
    """Return how an export holds an adapter, or the base; None where it does not."""
    return next((found for find in _FIND.values() if (found := find(manifest, name))), None)


def stored_adapter(manifest: Manifest, name: str) -> StoredAdapter:
    """Return how an export holds an adapter, or the base.

    Raises:
        AdapterError: It holds no such adapter.
    """
    found = find_stored(manifest, name)
    if found is None:
        msg = f"the export has no adapter {name!r}"
        raise AdapterError(msg, hint=f"It has: {', '.join(manifest.adapters) or 'none'}.")
    return found


def _packed(manifest: Manifest, name: str) -> StoredAdapter | None:
    adapter = manifest.adapters.get(name)
    if adapter is None or (pack := adapter.pack) is None:
        return None
    files = (pack.safetensors, pack.onnx_adapter)
    return StoredAdapter(
        Mode.SWAPPABLE,
        SWAPPABLE_GRAPH,
        pack,
        pack=pack.safetensors,
        files=files,
        place=pack.onnx_adapter,
    )


def _stacked(manifest: Manifest, name: str) -> StoredAdapter | None:
    adapter = manifest.adapters.get(name)
    if adapter is None or adapter.row is None:
        return None
    row, onnx = adapter.row.row, manifest.graphs[BATCHED_GRAPH].onnx
    return StoredAdapter(
        Mode.BATCHED, BATCHED_GRAPH, adapter.row, row=row, place=f"{onnx} row {row}"
    )


def _merged(manifest: Manifest, name: str) -> StoredAdapter | None:
    if name not in manifest.adapters or name not in manifest.graphs:
        return None
    graph, shared = manifest.graphs[name], manifest.base_graph.weights
    own = tuple(file for file in graph.weights if file not in shared)
    return StoredAdapter(
        Mode.MERGED, name, graph, weights=own, files=(*graph.graph_files, *own), place=graph.onnx
    )


def _base(manifest: Manifest, name: str) -> StoredAdapter | None:
    graph = manifest.graphs.get(BASE_GRAPH)
    if name != BASE_GRAPH or graph is None:
        return None
    weights = tuple(graph.weights)
    return StoredAdapter(
        Mode.BASE,
        BASE_GRAPH,
        graph,
        weights=weights,
        files=(*graph.graph_files, *weights),
        place=graph.onnx,
    )


_FIND: Final[Mapping[Mode, Callable[[Manifest, str], StoredAdapter | None]]] = {
    Mode.SWAPPABLE: _packed,
    Mode.BATCHED: _stacked,
    Mode.MERGED: _merged,
    Mode.BASE: _base,
}
