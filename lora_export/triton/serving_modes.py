"""The Python backend's serving modes: how each runs adapters, and the files that it takes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, SWAPPABLE_GRAPH, Mode, ServingMode
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import nbytes
from lora_export.exports.at_load import weights_bytes
from lora_export.exports.stacks import width_of
from lora_export.exports.stored_values import parameters_of
from lora_export.graph.adapters.swappable_graph import input_a
from lora_export.graph.nodes.weight_uses import stored_input_first
from lora_export.triton.graph_io import relocated
from lora_export.triton.model_folders import File
from lora_export.triton.serving_table import AdapterLine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.core.manifest import AdapterRecord, Manifest
    from lora_export.triton.serving_table import MatrixLine

__all__ = [
    "GRAPH_SERVING",
    "SERVING",
    "GraphServing",
    "Served",
    "ServingRow",
    "graph_files",
    "matrices_of",
    "serve_adapter",
    "session_bytes",
    "stack_bytes",
]

Served = tuple[AdapterLine, list[File]]
"""A line of the index, and the files that it names, relative to the version's folder."""


@dataclass(frozen=True)
class ServingRow:
    """One serving mode: how adapters are run in it.

    Attributes:
        graph: The graph that they share; that of the base where they have their own sessions.
        serve: Returns an adapter's line of the index, as far as it is of this mode, and its files;
            None where the export does not hold the adapter so.
        own_graphs: Whether each adapter has a graph.
        own_sessions: Whether each adapter has a session, opened when it is first asked for.
        rows: Whether each adapter is a row of the shared graph, and a batch may mix them.
        merges: Whether the server merges packs into the weights of the base.
    """

    graph: str
    serve: Callable[[Path, Manifest, str], Served | None]
    own_graphs: bool = False
    own_sessions: bool = False
    rows: bool = False
    merges: bool = False

    @property
    def packs(self) -> bool:
        """Whether each adapter has a pack."""
        return not self.own_graphs and not self.rows


@dataclass(frozen=True)
class GraphServing:
    """The service of one export mode by backends that run a graph as it is.

    Attributes:
        is_possible: Whether they can: they give a graph no optional inputs.
        is_default: Whether they are the default for few adapters.
        shared: The one graph that they run; None where each adapter has its own.
    """

    is_possible: bool = True
    is_default: bool = False
    shared: str | None = None


def serve_adapter(export_dir: Path, manifest: Manifest, way: ServingMode, name: str) -> Served:
    """Return an adapter's line of the index, and its files.

    Raises:
        UnsupportedError: It cannot be run in this way.
        ExportDirectoryError: A file is damaged or missing.
    """
    found = SERVING[way].serve(export_dir, manifest, name)
    if found is None:
        msg = f"adapter {name!r} cannot be served {way}: the export holds it in another mode"
        raise UnsupportedError(msg, hint="Choose another --way, or export in another --mode.")
    line, files = found
    return {"file": "", "nbytes": 0, "row": 0, "width": None, **line}, files


def _own_graph(export_dir: Path, manifest: Manifest, name: str) -> Served | None:
    if name not in manifest.graphs:
        return None
    file, files = graph_files(export_dir, manifest, name)
    return {"file": file, "nbytes": session_bytes(manifest)}, files


def _row(export_dir: Path, manifest: Manifest, name: str) -> Served | None:
    record = manifest.adapters[name]
    if record.row is None:
        return None
    row = record.row.row
    width = width_of(export_dir, manifest, row)
    return {"row": row, "width": width, "identity": _identity(record)}, []


def _pack(export_dir: Path, manifest: Manifest, name: str) -> Served | None:
    pack = manifest.adapters[name].pack
    if pack is None:
        return None
    path = resolve_inside(export_dir, pack.safetensors)
    tensors, _ = read_header(path)
    file = f"adapters/{name}-{manifest.files[pack.safetensors][:12]}.safetensors"
    line = AdapterLine(file=file, nbytes=sum(map(nbytes, tensors.values())))
    return line, [File(f"export/{file}", path)]


def _merged_pack(export_dir: Path, manifest: Manifest, name: str) -> Served | None:
    found, pack = _pack(export_dir, manifest, name), manifest.adapters[name].pack
    if found is None or pack is None:
        return None
    tensors, _ = read_header(resolve_inside(export_dir, pack.safetensors))
    _require_mergeable(manifest, name, {n: each.shape for n, each in tensors.items()})
    line, files = found
    return {**line, "nbytes": session_bytes(manifest)}, files


def _identity(record: AdapterRecord) -> str:
    """Return a value that identifies the contents of an adapter in the stacks."""
    facts = {"sha256", "scale", "alpha", "enable_lora", "dropped", "combined"}
    text = json.dumps(record.model_dump(mode="json", include=facts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def session_bytes(manifest: Manifest) -> int:
    """Return about what a session of a graph of the export takes on the CPU."""
    return weights_bytes(manifest, mapped=True)


def stack_bytes(export_dir: Path, manifest: Manifest) -> int:
    """Return the size of the stacks of a batched graph."""
    own = set(manifest.graphs[BATCHED_GRAPH].weights) - set(manifest.base_graph.weights)
    return sum(resolve_inside(export_dir, each).stat().st_size for each in own)


def graph_files(export_dir: Path, manifest: Manifest, name: str) -> tuple[str, list[File]]:
    """Return the name that a graph gets, and its files; what is not the base's gets its own."""
    record = manifest.graphs[name]
    shared = set(manifest.base_graph.weights)
    names = {
        file: file
        if file in shared or manifest.files[file][:12] in file
        else f"weights/{Path(file).stem}-{manifest.files[file][:12]}.safetensors"
        for file in record.weights
    }
    data = relocated(resolve_inside(export_dir, record.onnx), names)
    own = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.onnx"
    files = [File(f"export/{new}", resolve_inside(export_dir, old)) for old, new in names.items()]
    return own, [File(f"export/{own}", data=data), *files]


def matrices_of(manifest: Manifest) -> dict[str, MatrixLine]:
    """Return where a merge at load adds ``A B``, for every matrix of the base graph."""
    return {
        input_a(each.name): {
            "initializer": each.name,
            "out_axis": 1 if stored_input_first(each) else 0,
        }
        for each in parameters_of(manifest)
        if len(each.shape) == 2 and not each.is_buffer  # noqa: PLR2004  (a matrix)
    }


def _require_mergeable(
    manifest: Manifest, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    parameters = {each.name: each for each in parameters_of(manifest)}
    known = {each.name: each.stored_shape for each in parameters.values()}
    for tensor, shape in shapes.items():
        module = tensor.partition(".lora_")[0]
        changed = parameters.get(f"{module}.weight", parameters.get(module))
        if changed is not None and changed.quantized is not None:
            msg = (
                f"adapter {name!r} changes {changed.name!r}, which the export holds quantized: "
                "a merge at load would add it to rounded values"
            )
            raise UnsupportedError(msg, hint="Serve it with --way swappable.")
        if ".lora_" not in tensor and known.get(tensor) != shape:
            msg = (
                f"adapter {name!r} brings {tensor!r} of shape {list(shape)}, the base graph has "
                f"{list(known.get(tensor, ()))}: a merge at load cannot change a shape"
            )
            raise UnsupportedError(msg, hint="Serve it with --way swappable.")


SERVING: Final[Mapping[ServingMode, ServingRow]] = {
    ServingMode.MERGED: ServingRow(BASE_GRAPH, _own_graph, own_graphs=True, own_sessions=True),
    ServingMode.SWAPPABLE: ServingRow(SWAPPABLE_GRAPH, _pack),
    ServingMode.BATCHED: ServingRow(BATCHED_GRAPH, _row, rows=True),
    ServingMode.MERGE_AT_LOAD: ServingRow(BASE_GRAPH, _merged_pack, own_sessions=True, merges=True),
}

GRAPH_SERVING: Final[Mapping[Mode, GraphServing]] = {
    Mode.MERGED: GraphServing(is_default=True),
    Mode.SWAPPABLE: GraphServing(is_possible=False),
    Mode.BATCHED: GraphServing(shared=BATCHED_GRAPH),
}
