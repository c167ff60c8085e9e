"""How the adapters of a session are loaded, for each kind of export."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.hub import local_path
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import nbytes
from lora_export.exports.at_load import merged_values, require_same_shapes, weights_bytes
from lora_export.exports.outside_adapter import AdapterSource, recorded_source, resolve_source
from lora_export.exports.packs import FIXED_SCALE, is_swappable, read_pack
from lora_export.exports.stacks import width_of
from lora_export.runtime.adapter_file import SUFFIX, read_onnx_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.graph_runner import GraphRunner
    from lora_export.runtime.graphs import ExportGraphs

__all__ = ["WAYS", "How", "Loader", "Plan"]

How = Literal["merged", "swappable", "batched", "merge_at_load"]
WAYS: Final[tuple[How, ...]] = get_args(How)


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


class Loader:
    """The adapters of an export, and those that are given beside it.

    A plan is made once: it reads headers, and the given adapter's whole file for its hash.

    Args:
        graphs: The export's graphs.
        given: Further adapters, or where adapters of the export are now; planned here and now.

    Raises:
        LoraExportError: One of `given` cannot be loaded.
    """

    def __init__(self, graphs: ExportGraphs, given: Mapping[str, AdapterSource]) -> None:
        self._graphs = graphs
        self._given = dict(given)
        self._plans: dict[tuple[str, How | None], Plan] = {}
        for name, source in self._given.items():
            check_adapter_name(name)
            self.plan(name, "swappable" if _is_pack(source) else "merge_at_load")

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter, sorted."""
        return tuple(sorted({*self._graphs.manifest.adapters, *self._given}))

    def ways(self, name: str) -> tuple[How, ...]:
        """Return the ways in which an adapter can be loaded, best first.

        Raises:
            AdapterError: There is no such adapter.
        """
        if name not in self.names:
            msg = f"there is no adapter {name!r}"
            raise AdapterError(msg, hint=f"There are: {', '.join(self.names) or 'none'}.")
        manifest, given = self._graphs.manifest, self._given.get(name)
        found: dict[How, bool] = {
            "merged": name in manifest.adapters and name in manifest.graphs,
            "swappable": is_swappable(manifest)
            and (_is_pack(given) or (name in manifest.adapters and _has_pack(manifest, name))),
            "batched": name in manifest.adapters and manifest.adapters[name].row is not None,
            "merge_at_load": not _is_pack(given)
            and (given is not None or manifest.adapters[name].combined is None),
        }
        return tuple(how for how in WAYS if found[how])

    def plan(self, name: str, how: How | None) -> Plan:
        """Return how an adapter is loaded, in the best way or in the one asked for.

        Raises:
            AdapterError: There is no such adapter, or its files are damaged.
            UnsupportedError: It cannot be loaded that way.
            UsageError: There is no such way.
        """
        with contextlib.suppress(KeyError, TypeError):  # TypeError: no name at all, told below
            return self._plans[name, how]
        if how is not None and how not in WAYS:
            msg = f"how={how!r} is no way to run an adapter"
            raise UsageError(msg, hint=f"The ways are: {', '.join(WAYS)}.")
        ways = self.ways(name)
        if not ways or (how is not None and how not in ways):
            msg = f"adapter {name!r} cannot be run {how or 'here'}: {_lacking(how)}"
            raise UnsupportedError(msg, hint=f"It can be run: {', '.join(ways) or 'nowhere'}.")
        way = how or ways[0]
        if (name, way) not in self._plans:
            makers = {
                "merged": self._merged,
                "swappable": self._swappable,
                "batched": self._batched,
                "merge_at_load": self._merge_at_load,
            }
            self._plans[name, way] = makers[way](name)
        self._plans[name, how] = self._plans[name, way]
        return self._plans[name, how]

    def _merged(self, name: str) -> Plan:
        graphs = self._graphs
        size = weights_bytes(graphs.manifest, mapped=graphs.on_cpu)
        return Plan(f"{name} (merged)", size, lambda: graphs.open(name))

    def _merge_at_load(self, name: str) -> Plan:
        graphs = self._graphs
        root, manifest = graphs.root, graphs.manifest
        source = self._given.get(name) or recorded_source(root, manifest, name)
        resolved = resolve_source(root, manifest, name, source)
        sha256 = resolved.adapter.sha256
        record = manifest.adapters.get(name)
        if record is not None and record.sha256 != sha256:
            msg = f"{str(source.path)!r} is not the adapter {name!r} of the export: {sha256[:16]}…"
            raise AdapterError(msg, hint="Give it a name of its own, or add it with --replace.")
        require_same_shapes(resolved)
        changed = {update.parameter.name for update in resolved.updates}

        def load() -> GraphRunner:
            again = resolve_source(root, manifest, name, source)
            if again.adapter.sha256 != sha256:
                msg = (
                    f"adapter {name!r} at {str(source.path)!r} is no longer the one that was opened"
                )
                raise AdapterError(msg, hint="Open the export again.")
            return graphs.open(BASE_GRAPH, merged_values(root, manifest, again))

        size = weights_bytes(manifest, mapped=graphs.on_cpu, changed=changed)
        return Plan(f"{name} (merge_at_load)", size, load)

    def _swappable(self, name: str) -> Plan:
        given = self._given.get(name)
        if given is not None and _is_pack(given):
            return self._given_pack(name, given)
        graphs = self._graphs
        root, manifest = graphs.root, graphs.manifest
        pack = manifest.adapters[name].pack
        assert pack is not None  # noqa: S101  (see `ways`)
        graphs.require([pack.safetensors], hashed=True)
        tensors, metadata = read_header(resolve_inside(root, pack.safetensors))

        def load() -> GraphRunner:
            graph = graphs.swappable()
            values = read_pack(root, manifest, name, graph.axes)
            return graph.bind(name, values, fixed_scale=FIXED_SCALE in metadata)

        return Plan(f"{name} (swappable)", sum(map(nbytes, tensors.values())), load)

    def _batched(self, name: str) -> Plan:
        graphs, row = self._graphs, self._graphs.manifest.adapters[name].row
        assert row is not None  # noqa: S101  (see `ways`)
        width = width_of(graphs.root, graphs.manifest, row.row)
        return Plan(
            f"{name} (batched)", 0, lambda: graphs.shared(BATCHED_GRAPH).with_row(row.row, width)
        )

    def _given_pack(self, name: str, source: AdapterSource) -> Plan:
        graphs = self._graphs
        path = local_path(str(source.path))
        if source != AdapterSource(source.path):
            msg = f"the pack {str(path)!r} is taken as it is: it has no options"
            raise UsageError(msg, hint="Give its path alone.")
        if not is_swappable(graphs.manifest):
            msg = f"adapter {name!r} is a pack, and the export has no swappable graph"
            raise UnsupportedError(msg, hint="Export it with --mode swappable.")
        fingerprint = graphs.manifest.base.fingerprint
        size = sum(each.nbytes for each in read_onnx_adapter(path, fingerprint).values())

        def load() -> GraphRunner:
            return graphs.swappable().bind(name, read_onnx_adapter(path, fingerprint))

        return Plan(f"{name} (swappable)", size, load)


def _has_pack(manifest: Manifest, name: str) -> bool:
    return manifest.adapters[name].pack is not None


def _is_pack(source: AdapterSource | None) -> bool:
    return source is not None and Path(source.path).suffix == SUFFIX


_LACKS: Final = {
    "merged": "the export has no graph of it",
    "swappable": "the export has no swappable graph with a pack of it",
    "batched": "the export has no batched graph with a row of it",
    "merge_at_load": "it is given as a pack, or was combined of several",
}


def _lacking(how: How | None) -> str:
    return "nothing holds it" if how is None else _LACKS[how]
