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

import json
from importlib import resources
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.exports.stacks import width_of
from lora_export.triton.graph_io import read_interface
from lora_export.triton.model_folders import File
from lora_export.triton.serving import index as serving_index
from lora_export.triton.serving_modes import (
    SERVING,
    graph_files,
    matrices_of,
    serve_adapter,
    session_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.core.modes import ServingMode
    from lora_export.triton.graph_io import Interface
    from lora_export.triton.serving_table import ServingTable

__all__ = [
    "INDEX",
    "code_files",
    "index_file",
    "interface_of",
    "read_index_table",
    "serve",
    "serving_source",
]

INDEX: Final = f"export/{serving_index.INDEX_NAME}"
_CODE: Final = (
    "model.py", "index.py", "lru.py", "metrics.py", "probe.py", "rows.py", "runners.py",
    "tensors.py",
)  # fmt: skip


def code_files() -> list[File]:
    """Return the code of a model that serves adapters."""
    return [serving_source(name) for name in _CODE]


def serving_source(name: str, path: str | None = None) -> File:
    """Return a file of the code as it is, called `path` there."""
    source = resources.files("lora_export.triton.serving")
    return File(path or name, data=(source / name).read_bytes())


def index_file(table: ServingTable) -> File:
    """Return the index as a file."""
    return File(INDEX, data=json.dumps(table, indent=1, sort_keys=True).encode() + b"\n")


def read_index_table(version: Path) -> ServingTable:
    """Return the index of a version's folder, checked.

    Raises:
        BadIndexError: It is damaged.
        OSError: It is missing.
    """
    folder = (version / INDEX).parent
    data = serving_index.index_bytes(folder)
    serving_index.parse_index(data, folder)
    table: ServingTable = json.loads(data)
    return table


def serve(
    export_dir: Path, manifest: Manifest, way: ServingMode, adapters: Iterable[str]
) -> tuple[ServingTable, list[File]]:
    """Return the index of an export, and all files that it names.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        way: How adapters are run.
        adapters: Those that are served.

    Raises:
        UnsupportedError: An adapter cannot be run in this way.
        ExportDirectoryError: A file is damaged or missing.
    """
    require_graph(manifest, way)
    mode = SERVING[way]
    graph, files = graph_files(export_dir, manifest, mode.graph)
    interface = read_interface(resolve_inside(export_dir, manifest.graphs[mode.graph].onnx))
    table: ServingTable = {
        "format": serving_index.FORMAT,
        "way": way.value,
        "graph": graph,
        "graph_bytes": session_bytes(manifest),
        "weights": BASE_WEIGHTS,
        "base": not manifest.base_graph.missing,
        "fingerprint": manifest.base.fingerprint,
        "inputs": [each.name for each in interface.inputs if each.name != "adapter_ids"],
        "outputs": [each.name for each in interface.outputs],
        "axes": {each.name: list(each.axes) for each in interface.inputs},
        "adapters": {},
        "matrices": matrices_of(manifest) if mode.merges else {},
        "base_width": width_of(export_dir, manifest, 0) if mode.rows else None,
    }
    for name in adapters:
        line, own = serve_adapter(export_dir, manifest, way, name)
        table["adapters"][name] = line
        files += own
    return table, files


def interface_of(
    export_dir: Path, manifest: Manifest, way: ServingMode, adapters: Sequence[str]
) -> Interface:
    """Return the inputs and outputs of a model of the Python backend.

    Heads of adapters may differ in width: a size that is not the same for all is the caller's.
    """
    require_graph(manifest, way)
    mode = SERVING[way]
    shared = read_interface(resolve_inside(export_dir, manifest.graphs[mode.graph].onnx))
    others = [
        read_interface(resolve_inside(export_dir, manifest.graphs[name].onnx)).outputs
        for name in adapters
        if mode.own_graphs and name in manifest.graphs
    ]
    widths = mode.rows and any(
        width_of(export_dir, manifest, row) is not None for row in manifest.rows.values()
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


def require_graph(manifest: Manifest, way: ServingMode) -> None:
    """Raise `UnsupportedError` where an export has no graph that runs adapters in this way."""
    if (graph := SERVING[way].graph) not in manifest.graphs:
        msg = f"the export has no {graph} graph: nothing can be served {way}"
        raise UnsupportedError(msg, hint="Choose another --way, or export in another --mode.")
