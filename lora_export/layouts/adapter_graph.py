"""The graph that runs an adapter by itself, as other runtimes open it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import UnsupportedError
from lora_export.core.modes import BATCHED_GRAPH, SWAPPABLE_GRAPH
from lora_export.core.tensors import nbytes
from lora_export.exports.graph_files import read_graphs
from lora_export.exports.integrity_checks import require_files
from lora_export.exports.pack_reading import open_pack
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.graph.adapters.baked_graph import bake_adapter
from lora_export.graph.adapters.swappable_graph import optional_inputs
from lora_export.graph.spec.template import Placement

if TYPE_CHECKING:
    from lora_export.core.manifest import GraphRecord
    from lora_export.layouts.description import Subject

__all__ = ["graphs_of"]


def graphs_of(subject: Subject) -> tuple[bytes, bytes | None]:
    """Return the graph of a subject and None, or its decoder's and its encoder's.

    An adapter of a swappable export is fixed in the graph: its values are constants there. All
    graphs name their weight files relative to the export's directory.

    Raises:
        UnsupportedError: The adapter is a row of a batched graph.
        AdapterError: Its pack does not fit the graph.
        ExportDirectoryError: A graph or a pack is missing or differs from the manifest.
    """
    export_dir, manifest, name = subject.export_dir, subject.manifest, subject.name
    if name == SWAPPABLE_GRAPH:
        return _read(subject, manifest.graphs[name])
    stored = stored_adapter(manifest, name)
    if stored.graph == BATCHED_GRAPH:
        msg = f"adapter {name!r} is a row of a batched graph, which other runtimes cannot choose"
        hint = "Export it with --mode merged or swappable; or write the base: --adapter base."
        raise UnsupportedError(msg, hint=hint)
    if stored.pack is None:
        return _read(subject, manifest.graphs[stored.graph])
    require_files(export_dir, manifest, [stored.pack], hashed=True)
    graph, _ = _read(subject, manifest.graphs[SWAPPABLE_GRAPH])
    tensors = open_pack(export_dir, manifest, name, optional_inputs(graph))
    placements = {
        each: Placement(stored.pack, tensor.start_bytes, nbytes(tensor), tensor.shape)
        for each, tensor in tensors.items()
    }
    dtypes = {each: tensor.dtype.onnx for each, tensor in tensors.items()}
    return bake_adapter(graph, placements, dtypes), None


def _read(subject: Subject, record: GraphRecord) -> tuple[bytes, bytes | None]:
    require_files(subject.export_dir, subject.manifest, record.graph_files, hashed=True)
    return read_graphs(subject.export_dir, record)
