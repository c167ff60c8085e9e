"""The contents of a Python-backend model: part of an export, its index, the serving code.

    1/model.py  …                         the code, as it lies in ``serving/``
    1/export/serving.json                 the index; what is added or removed is told here, last
    1/export/<graph>-<hash>.onnx          the graph that adapters share, or one of each (merged)
    1/export/weights/…                    their weights
    1/export/adapters/<name>-<hash>.safetensors   packs

Every name but that of the base's weights holds a part of the file's own SHA-256: a server that has
read the old index never opens another file than the one it was told of.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, SWAPPABLE_GRAPH
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import nbytes
from lora_export.exports.at_load import weights_bytes
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.exports.extend import parameters_of
from lora_export.exports.stacks import width_of
from lora_export.graph.adapters.swappable_graph import input_a
from lora_export.graph.nodes.weight_uses import stored_input_first
from lora_export.triton.graph_io import read_interface, relocated
from lora_export.triton.model_folders import File
from lora_export.triton.serving import index as serving_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.core.manifest import AdapterRecord, Manifest
    from lora_export.triton.graph_io import Interface
    from lora_export.triton.repository_options import Way

__all__ = [
    "INDEX",
    "Served",
    "code_files",
    "index_file",
    "interface_of",
    "read_index_table",
    "serve",
    "serve_adapter",
    "serving_source",
    "session_bytes",
    "stack_bytes",
]

INDEX: Final = f"export/{serving_index.INDEX_NAME}"
_CODE: Final = (
    "model.py", "index.py", "lru.py", "metrics.py", "probe.py", "rows.py", "runners.py",
    "tensors.py",
)  # fmt: skip
_SHARED: Final[dict[str, str]] = {
    "merged": BASE_GRAPH,
    "merge_at_load": BASE_GRAPH,
    "swappable": SWAPPABLE_GRAPH,
    "batched": BATCHED_GRAPH,
}
"""The graph that adapters share, by the way in which they are run."""

Served = tuple[dict[str, Any], list[File]]
"""A part of the index, and the files that it names, relative to the version's folder."""


def code_files() -> list[File]:
    """Return the code of a model that serves adapters."""
    return [serving_source(name) for name in _CODE]


def serving_source(name: str, path: str | None = None) -> File:
    """Return a file of the code as it is, called `path` there."""
    source = resources.files("lora_export.triton.serving")
    return File(path or name, data=(source / name).read_bytes())


def index_file(table: Mapping[str, Any]) -> File:
    """Return the index as a file."""
    return File(INDEX, data=json.dumps(table, indent=1, sort_keys=True).encode() + b"\n")


def read_index_table(version: Path) -> dict[str, Any]:
    """Return the index of a version's folder as JSON values, checked.

    Raises:
        BadIndexError: It is damaged.
        OSError: It is missing.
    """
    folder = (version / INDEX).parent
    data = serving_index.index_bytes(folder)
    serving_index.parse_index(data, folder)
    table: dict[str, Any] = json.loads(data)
    return table


def serve(root: Path, manifest: Manifest, way: Way, adapters: Iterable[str]) -> Served:
    """Return the index of an export, and all files that it names.

    Args:
        root: The export directory.
        manifest: Its manifest.
        way: How adapters are run.
        adapters: Those that are served.

    Raises:
        UnsupportedError: An adapter cannot be run in this way.
        ExportDirectoryError: A file is damaged or missing.
    """
    require_graph(manifest, way)
    graph, files = _graph(root, manifest, _SHARED[way])
    interface = read_interface(resolve_inside(root, manifest.graphs[_SHARED[way]].onnx))
    table: dict[str, Any] = {
        "format": serving_index.FORMAT,
        "way": way,
        "graph": graph,
        "graph_bytes": session_bytes(manifest),
        "weights": BASE_WEIGHTS,
        "base": not manifest.base_graph.missing,
        "fingerprint": manifest.base.fingerprint,
        "inputs": [each.name for each in interface.inputs if each.name != "adapter_ids"],
        "outputs": [each.name for each in interface.outputs],
        "axes": {each.name: list(each.axes) for each in interface.inputs},
        "adapters": {},
        "matrices": _matrices(manifest) if way == "merge_at_load" else {},
        "base_width": width_of(root, manifest, 0) if way == "batched" else None,
    }
    for name in adapters:
        line, own = serve_adapter(root, manifest, way, name)
        table["adapters"][name] = line
        files += own
    return table, files


def serve_adapter(root: Path, manifest: Manifest, way: Way, name: str) -> Served:
    """Return an adapter's line of the index, and its files.

    Raises:
        UnsupportedError: It cannot be run in this way.
        ExportDirectoryError: A file is damaged or missing.
    """
    record = manifest.adapters[name]
    line: dict[str, Any] = {"file": "", "nbytes": 0, "row": 0, "width": None}
    if way == "merged" and name in manifest.graphs:
        file, files = _graph(root, manifest, name)
        return {**line, "file": file, "nbytes": session_bytes(manifest)}, files
    if way == "batched" and record.row is not None:
        row = record.row.row
        own = {"row": row, "width": width_of(root, manifest, row), "identity": _identity(record)}
        return {**line, **own}, []
    if way in {"swappable", "merge_at_load"} and record.pack is not None:
        path = resolve_inside(root, record.pack.safetensors)
        tensors, _ = read_header(path)
        size = sum(map(nbytes, tensors.values()))
        if way == "merge_at_load":
            _require_mergeable(manifest, name, {n: each.shape for n, each in tensors.items()})
            size = session_bytes(manifest)
        file = f"adapters/{name}-{manifest.files[record.pack.safetensors][:12]}.safetensors"
        return {**line, "file": file, "nbytes": size}, [File(f"export/{file}", path)]
    msg = f"adapter {name!r} cannot be served {way}: the export does not hold it so"
    raise UnsupportedError(msg, hint="Choose another --way, or export in another --mode.")


def _identity(record: AdapterRecord) -> str:
    """Return what tells an adapter in the stacks from another one of its name."""
    facts = {"sha256", "scale", "alpha", "enable_lora", "dropped", "combined"}
    text = json.dumps(record.model_dump(mode="json", include=facts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def interface_of(root: Path, manifest: Manifest, way: Way, adapters: Sequence[str]) -> Interface:
    """Return what a model of the Python backend reads and returns.

    Heads of adapters may differ in width: a size that is not the same for all is the caller's.
    """
    require_graph(manifest, way)
    shared = read_interface(resolve_inside(root, manifest.graphs[_SHARED[way]].onnx))
    others = [
        read_interface(resolve_inside(root, manifest.graphs[name].onnx)).outputs
        for name in adapters
        if way == "merged" and name in manifest.graphs
    ]
    widths = way == "batched" and any(
        width_of(root, manifest, row) is not None for row in manifest.rows.values()
    )
    outputs = []
    for position, each in enumerate(shared.outputs):
        kinds = [each.dims, *(other[position].dims for other in others)]
        dims = [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*kinds, strict=True)]
        if widths and position == 0:
            dims[-1] = -1
        outputs.append(type(each)(each.name, each.data_type, tuple(dims)))
    inputs = tuple(each for each in shared.inputs if each.name != "adapter_ids")
    return type(shared)(inputs, (), tuple(outputs), shared.files)


def require_graph(manifest: Manifest, way: Way) -> None:
    """Raise `UnsupportedError` where an export has no graph that runs adapters in this way."""
    if _SHARED[way] not in manifest.graphs:
        msg = f"the export has no {_SHARED[way]} graph: nothing can be served {way}"
        raise UnsupportedError(msg, hint="Choose another --way, or export in another --mode.")


def session_bytes(manifest: Manifest) -> int:
    """Return about what a session of a graph of the export takes on the CPU."""
    return weights_bytes(manifest, mapped=True)


def stack_bytes(root: Path, manifest: Manifest) -> int:
    """Return what the stacks of a batched graph take."""
    own = set(manifest.graphs[BATCHED_GRAPH].weights) - set(manifest.base_graph.weights)
    return sum(resolve_inside(root, each).stat().st_size for each in own)


def _graph(root: Path, manifest: Manifest, name: str) -> tuple[str, list[File]]:
    """Return the name that a graph gets, and its files; what is not the base's gets its own."""
    record = manifest.graphs[name]
    shared = set(manifest.base_graph.weights)
    names = {
        file: file
        if file in shared or manifest.files[file][:12] in file
        else f"weights/{Path(file).stem}-{manifest.files[file][:12]}.safetensors"
        for file in record.weights
    }
    data = relocated(resolve_inside(root, record.onnx), names)
    own = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.onnx"
    files = [File(f"export/{new}", resolve_inside(root, old)) for old, new in names.items()]
    return own, [File(f"export/{own}", data=data), *files]


def _matrices(manifest: Manifest) -> dict[str, dict[str, Any]]:
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
    known = {each.name: each.stored_shape for each in parameters_of(manifest)}
    for tensor, shape in shapes.items():
        if ".lora_" not in tensor and known.get(tensor) != shape:
            msg = (
                f"adapter {name!r} brings {tensor!r} of shape {list(shape)}, the base graph has "
                f"{list(known.get(tensor, ()))}: a merge at load cannot change a shape"
            )
            raise UnsupportedError(msg, hint="Serve it with --way swappable.")
