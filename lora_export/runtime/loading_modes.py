"""Loading of an adapter in each serving mode: the exports that allow it, and the function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.hub import local_path
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, SWAPPABLE_GRAPH, ServingMode
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import nbytes
from lora_export.exports.at_load import merged_values, require_same_shapes, weights_bytes
from lora_export.exports.outside_adapter import recorded_source, resolve_source
from lora_export.exports.pack_reading import read_pack
from lora_export.exports.packs import FIXED_SCALE
from lora_export.exports.stacks import width_of
from lora_export.runtime.adapter_file import SUFFIX, read_onnx_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.graph_runner import GraphRunner
    from lora_export.runtime.graphs import ExportGraphs

__all__ = ["LOADING", "LoadingMode", "Plan", "is_pack"]


@dataclass(frozen=True)
class Plan:
    """One adapter, one way.

    Attributes:
        key: What it is called in the cache.
        nbytes: What it takes when it is loaded.
        load: Loads it.
    """

    key: str
    nbytes: int
    load: Callable[[], GraphRunner]


@dataclass(frozen=True)
class LoadingMode:
    """The loading of adapters in one serving mode.

    Attributes:
        is_possible: Whether an adapter of the export, or one that is given beside it, can be.
        plan: Returns how one that can be is loaded.
        otherwise: Why one cannot be.
    """

    is_possible: Callable[[Manifest, str, AdapterSpec | None], bool]
    plan: Callable[[ExportGraphs, str, AdapterSpec | None], Plan]
    otherwise: str


def is_pack(source: AdapterSpec | None) -> bool:
    """Whether an adapter is given as a pack, an ``.onnx_adapter``."""
    return source is not None and Path(source.source).suffix == SUFFIX


def _has_graph(manifest: Manifest, name: str, _: AdapterSpec | None) -> bool:
    return name in manifest.adapters and name in manifest.graphs


def _has_pack(manifest: Manifest, name: str, given: AdapterSpec | None) -> bool:
    adapter = manifest.adapters.get(name)
    held = adapter is not None and adapter.pack is not None
    return SWAPPABLE_GRAPH in manifest.graphs and (is_pack(given) or held)


def _has_row(manifest: Manifest, name: str, _: AdapterSpec | None) -> bool:
    return name in manifest.rows


def _has_tensors(manifest: Manifest, name: str, given: AdapterSpec | None) -> bool:
    """Whether the adapter's own files can be read: a pack or a combination has none."""
    return not is_pack(given) and (given is not None or manifest.adapters[name].combined is None)


def _merged(graphs: ExportGraphs, name: str, _: AdapterSpec | None) -> Plan:
    size = weights_bytes(graphs.manifest, mapped=graphs.on_cpu)
    return Plan(f"{name} (merged)", size, lambda: graphs.open(name))


def _merge_at_load(graphs: ExportGraphs, name: str, given: AdapterSpec | None) -> Plan:
    export_dir, manifest = graphs.export_dir, graphs.manifest
    source = given or recorded_source(export_dir, manifest, name)
    resolved = resolve_source(export_dir, manifest, name, source)
    sha256 = resolved.adapter.sha256
    record = manifest.adapters.get(name)
    if record is not None and record.sha256 != sha256:
        msg = f"{source.source!r} is not the adapter {name!r} of the export: {sha256[:16]}…"
        raise AdapterError(msg, hint="Give it a name of its own, or add it with --replace.")
    require_same_shapes(resolved)
    changed = {update.parameter.name for update in resolved.updates}

    def load() -> GraphRunner:
        again = resolve_source(export_dir, manifest, name, source)
        if again.adapter.sha256 != sha256:
            msg = f"adapter {name!r} at {source.source!r} has changed since it was opened"
            raise AdapterError(msg, hint="Open the export again.")
        return graphs.open(BASE_GRAPH, merged_values(export_dir, manifest, again))

    size = weights_bytes(manifest, mapped=graphs.on_cpu, changed=changed)
    return Plan(f"{name} (merge_at_load)", size, load)


def _swappable(graphs: ExportGraphs, name: str, given: AdapterSpec | None) -> Plan:
    if given is not None and is_pack(given):
        return _given_pack(graphs, name, given)
    export_dir, manifest = graphs.export_dir, graphs.manifest
    pack = manifest.adapters[name].pack
    assert pack is not None  # noqa: S101  (see `_has_pack`)
    graphs.require([pack.safetensors], hashed=True)
    tensors, metadata = read_header(resolve_inside(export_dir, pack.safetensors))

    def load() -> GraphRunner:
        graph = graphs.swappable()
        values = read_pack(export_dir, manifest, name, graph.axes)
        return graph.bind(name, values, fixed_scale=FIXED_SCALE in metadata)

    return Plan(f"{name} (swappable)", sum(map(nbytes, tensors.values())), load)


def _given_pack(graphs: ExportGraphs, name: str, source: AdapterSpec) -> Plan:
    path = local_path(source.source, subfolder=source.subfolder)
    if source != AdapterSpec(name=source.name, source=source.source):
        msg = f"the pack {str(path)!r} takes no options"
        raise UsageError(msg, hint="Give its path alone.")
    if SWAPPABLE_GRAPH not in graphs.manifest.graphs:
        msg = f"adapter {name!r} is a pack, and the export has no swappable graph"
        raise UnsupportedError(msg, hint="Export it with --mode swappable.")
    fingerprint = graphs.manifest.base.fingerprint
    size = sum(each.nbytes for each in read_onnx_adapter(path, fingerprint).values())

    def load() -> GraphRunner:
        return graphs.swappable().bind(name, read_onnx_adapter(path, fingerprint))

    return Plan(f"{name} (swappable)", size, load)


def _batched(graphs: ExportGraphs, name: str, _: AdapterSpec | None) -> Plan:
    row = graphs.manifest.adapters[name].row
    assert row is not None  # noqa: S101  (see `_has_row`)
    width = width_of(graphs.export_dir, graphs.manifest, row.row)
    return Plan(
        f"{name} (batched)", 0, lambda: graphs.shared(BATCHED_GRAPH).with_row(row.row, width)
    )


LOADING: Final[Mapping[ServingMode, LoadingMode]] = {
    ServingMode.MERGED: LoadingMode(_has_graph, _merged, "the export has no graph of it"),
    ServingMode.SWAPPABLE: LoadingMode(
        _has_pack, _swappable, "the export has no swappable graph with a pack of it"
    ),
    ServingMode.BATCHED: LoadingMode(
        _has_row, _batched, "the export has no batched graph with a row of it"
    ),
    ServingMode.MERGE_AT_LOAD: LoadingMode(
        _has_tensors, _merge_at_load, "it is given as a pack, or was combined of several"
    ),
}
