"""Loading of a session's adapters, for each kind of export."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.modes import ServingMode
from lora_export.runtime.loading_modes import LOADING, is_pack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.modes import ServingWord
    from lora_export.runtime.graphs import ExportGraphs
    from lora_export.runtime.loading_modes import Plan

__all__ = ["WAYS", "Loader"]

WAYS: Final = tuple(ServingMode)


class Loader:
    """The adapters of an export, and those that are given beside it.

    A plan is made once: it reads headers, and the given adapter's whole file for its hash.

    Args:
        graphs: The export's graphs.
        given: Further adapters, or where adapters of the export are now; planned here and now.

    Raises:
        LoraExportError: One of `given` cannot be loaded.
    """

    def __init__(self, graphs: ExportGraphs, given: Mapping[str, AdapterSpec]) -> None:
        self._graphs = graphs
        self._given = dict(given)
        self._plans: dict[tuple[str, ServingWord | None], Plan] = {}
        for name, source in self._given.items():
            check_adapter_name(name)
            pack = is_pack(source)
            self.plan(name, ServingMode.SWAPPABLE if pack else ServingMode.MERGE_AT_LOAD)

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter, sorted."""
        return tuple(sorted({*self._graphs.manifest.adapters, *self._given}))

    def ways(self, name: str) -> tuple[ServingMode, ...]:
        """Return the ways in which an adapter can be loaded, best first.

        Raises:
            AdapterError: There is no such adapter.
        """
        if name not in self.names:
            msg = f"there is no adapter {name!r}"
            raise AdapterError(msg, hint=f"There are: {', '.join(self.names) or 'none'}.")
        manifest, given = self._graphs.manifest, self._given.get(name)
        return tuple(
            mode for mode, each in LOADING.items() if each.is_possible(manifest, name, given)
        )

    def plan(self, name: str, how: ServingWord | None) -> Plan:
        """Return how an adapter is loaded, in the best way or in the one asked for.

        Raises:
            AdapterError: There is no such adapter, or its files are damaged.
            UnsupportedError: It cannot be loaded that way.
            UsageError: There is no such way.
        """
        with contextlib.suppress(KeyError, TypeError):  # TypeError: no name at all, told below
            return self._plans[name, how]
        if how is not None and how not in WAYS:
            msg = f"unknown mode how={how!r} for an adapter"
            raise UsageError(msg, hint=f"The ways are: {', '.join(WAYS)}.")
        ways = self.ways(name)
        if not ways or (how is not None and how not in ways):
            why = "nothing holds it" if how is None else LOADING[ServingMode(how)].otherwise
            msg = f"adapter {name!r} cannot be run {how or 'here'}: {why}"
            raise UnsupportedError(msg, hint=f"It can be run: {', '.join(ways) or 'nowhere'}.")
        mode = ways[0] if how is None else ServingMode(how)
        if (name, mode) not in self._plans:
            self._plans[name, mode] = LOADING[mode].plan(self._graphs, name, self._given.get(name))
        self._plans[name, how] = self._plans[name, mode]
        return self._plans[name, how]
