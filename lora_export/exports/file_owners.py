"""The owner of each file of an export, as the manifest records it: an adapter, or the base.

    an adapter    its graphs and weights, its pack, its golden outputs, ``hf/<adapter>/``
    the base      graphs, weights and tokenizer files that all adapters use and none changes
    neither       reports, engines, golden outputs of shared graphs, stacks of a batched graph

The records say it; no name of a file is taken apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.manifest import REPORTS_FOLDER
from lora_export.core.modes import BATCHED_GRAPH, SHARED_GRAPHS
from lora_export.exports.adapter_companions import folder_of
from lora_export.exports.stored_adapters import find_stored
from lora_export.ondevice.trt.build_record import FOLDER

if TYPE_CHECKING:
    from lora_export.core.manifest import Manifest

__all__ = ["files_of_adapter", "files_of_base"]


def files_of_adapter(manifest: Manifest, name: str) -> frozenset[str]:
    """Return the files of an export that belong to one adapter; none where it has no such one.

    Args:
        manifest: The manifest of the export.
        name: The adapter.
    """
    record, stored = manifest.adapters.get(name), find_stored(manifest, name)
    if record is None or stored is None:
        return frozenset()
    found = {*stored.files, stored.record.golden}
    if record.companions is not None:
        found |= {f"{folder_of(name)}/{file}" for file in record.companions.files}
    return frozenset(file for file in found if file in manifest.files)


def files_of_base(manifest: Manifest) -> frozenset[str]:
    """Return the files of an export that all its adapters share and that none of them changes.

    Args:
        manifest: The manifest of the export.
    """
    graphs = [manifest.graphs[name] for name in SHARED_GRAPHS if name in manifest.graphs]
    others = {each.golden for each in (manifest.base_graph, *graphs)}
    if (batched := manifest.graphs.get(BATCHED_GRAPH)) is not None:
        others |= {*batched.graph_files, *batched.weights} - set(manifest.base_graph.weights)
    for name in manifest.adapters:
        others |= files_of_adapter(manifest, name)
    return frozenset(
        file
        for file in manifest.files
        if file not in others and not file.startswith((REPORTS_FOLDER, f"{FOLDER}/"))
    )
