"""An export, opened to be run: any of its adapters per request, without torch.

There are four ways to run an adapter. Unless one is asked for, the first that there is, is taken:

    1. merged          the graph that the export has of it; as fast as the base
    2. swappable       the swappable graph with the adapter's pack; two thin products a layer
    3. batched         the batched graph, whose rows may have an adapter each
    4. merge_at_load   the base graph, its changed weights computed while the session opens; as fast
                       as the base, and nothing is written

A merged session, 1 or 4, holds weights of its own: ONNX Runtime shares none between sessions. A
pack holds the adapter's tensors. Both are loaded at their first use, or by `Session.load`, and kept
in a cache with a byte budget. What all adapters share (the base graph, the swappable graph, the
batched graph) is opened at its first use, stays, and does not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, SWAPPABLE_GRAPH, ServingMode
from lora_export.exports.integrity_checks import require_files, require_usable
from lora_export.graph.adapters.batched_graph import ADAPTER_IDS
from lora_export.graph.spec.onnx_file import read_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.runtime.cache import ByteCache
from lora_export.runtime.feeds import checked_feeds
from lora_export.runtime.graphs import ExportGraphs
from lora_export.runtime.loading import WAYS, Loader
from lora_export.runtime.ort import require_provider

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy.typing as npt
    from typing_extensions import Self

    from lora_export.core.modes import ServingWord
    from lora_export.graph.spec.signature import Input, Output
    from lora_export.ondevice.graph_runner import GraphRunner

__all__ = ["Session", "open_export"]

OutputArray: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"
"""An output of a graph, which decides its dtype and shape."""


def open_export(
    folder: str | Path,
    *,
    provider: str = "cpu",
    adapters: Mapping[str, str | Path | AdapterSpec] | None = None,
    cache_bytes: int | None = None,
    threads: int = 0,
    check_hashes: bool = False,
) -> Session:
    """Open an export directory; graphs and adapters are loaded when they are first used.

    Args:
        folder: The export directory.
        provider: ``cpu``, ``cuda``, ``tensorrt``, or ONNX Runtime's name of an execution provider.
        adapters: Further adapters by name, in any format that `add` reads, to be merged at load; or
            packs (``.onnx_adapter``) for the swappable graph. An adapter of the export may be named
            too, to say where it is now. The key is the name, whatever a spec says.
        cache_bytes: What loaded adapters may take together; None for no limit.
        threads: Threads within an operator, for each session; 0 leaves the choice to ONNX Runtime.
        check_hashes: Whether the SHA-256 of every weight file is compared before it is used. Graphs
            always are, and weight files have the sizes and headers that belong to them.

    Raises:
        ExportDirectoryError: There is no export, or it is damaged.
        AdapterError: An adapter is missing, damaged, or not of this base.
        UnsupportedError: An adapter cannot be merged at load (a head of another width).
        UsageError: `cache_bytes` is negative, or an adapter was trained for another task.
        MissingRuntimeError: ONNX Runtime, or the provider, is not installed.
    """
    if cache_bytes is not None and cache_bytes < 0:
        msg = f"cache_bytes is {cache_bytes}"
        raise UsageError(msg, hint="Give a number of bytes, or None for no limit.")
    name = require_provider(provider)
    export_dir = Path(folder)
    manifest = read_manifest(export_dir)
    if manifest.base_graph.encoder is not None:
        msg = f"{str(export_dir)!r} has an encoder and a decoder; a session runs a single graph"
        raise UnsupportedError(msg, hint="Run its text with: lora-export generate")
    require_usable(export_dir, manifest)
    if check_hashes:
        require_files(export_dir, manifest, manifest.base_graph.weights, hashed=True)
    graphs = ExportGraphs(export_dir, manifest, name, threads, check_hashes)
    sources = {
        key: each if isinstance(each, AdapterSpec) else AdapterSpec(source=str(each))
        for key, each in (adapters or {}).items()
    }
    return Session(graphs, Loader(graphs, sources), ByteCache(cache_bytes))


class Session:
    """An open export; made by `open_export`. Thread-safe; a context manager.

    Attributes:
        inputs: What its graphs read: names, dtypes, axes.
        outputs: What they return; an adapter may bring a head of another width than the base's.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    def __init__(self, graphs: ExportGraphs, loader: Loader, cache: ByteCache[GraphRunner]) -> None:
        self._graphs, self._loader, self._cache = graphs, loader, cache
        path = resolve_inside(graphs.export_dir, graphs.manifest.base_graph.onnx)
        signature = read_signature(read_onnx(path))
        self.inputs, self.outputs = signature.inputs, signature.outputs
        self._rows = graphs.manifest.rows

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that can be run, sorted."""
        return self._loader.names

    @property
    def cached_bytes(self) -> int:
        """The bytes of the loaded adapters."""
        return self._cache.used_bytes

    def ways(self, adapter: str) -> tuple[ServingMode, ...]:
        """Return the ways in which an adapter can be run, the one that is taken first.

        Raises:
            AdapterError: There is no such adapter.
        """
        return self._loader.ways(adapter)

    def load(self, adapter: str, *, how: ServingWord | None = None) -> None:
        """Load an adapter ahead of its first request.

        Raises:
            LoraExportError: As `run`.
        """
        with self._hold(adapter, how):
            pass

    def run(
        self,
        feeds: Mapping[str, npt.ArrayLike],
        *,
        adapter: str | None = None,
        adapter_ids: Sequence[int | str | None] | None = None,
        how: ServingWord | None = None,
    ) -> dict[str, OutputArray]:
        """Run the base, one adapter, or an adapter for each row; return the outputs by name.

        Of a decoder of the graph form ``ort``, on the CPU, arrays of the past that have room for
        the new positions are written in place and returned: no run copies the cache.

        Args:
            feeds: A value for each of `inputs`; for a swappable graph ``lora_scale`` too.
            adapter: The adapter; None runs the base, in the swappable graph where there is one.
            adapter_ids: For each row of the batch its adapter: its name, or its row in the batched
                graph's stacks; None or 0 for the base.
            how: One of the four ways, in place of the first that there is.

        Raises:
            AdapterError: There is no such adapter, or its files are damaged.
            UnsupportedError: It cannot be run in the way asked for, or the base lacks a head.
            UsageError: `feeds` does not fit, or the adapter is larger than the whole cache.
            ExportDirectoryError: A file of the export is damaged, or the graph fails.
        """
        if adapter_ids is not None:
            if adapter is not None or how is not None:
                msg = "adapter_ids cannot be combined with adapter or how"
                raise UsageError(msg, hint="Leave one of them out.")
            return self._run_batched(feeds, adapter_ids)
        if adapter is None:
            return self._run(self._base(how), feeds)
        with self._hold(adapter, how) as runner:
            return self._run(runner, feeds)

    def close(self) -> None:
        """Free everything; runs that have begun end as usual, later ones are refused."""
        self._cache.close()
        self._graphs.close()

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _hold(self, adapter: str, how: ServingWord | None) -> AbstractContextManager[GraphRunner]:
        plan = self._loader.plan(adapter, how)
        return self._cache.hold(plan.key, plan.nbytes, plan.load)

    def _run(
        self, runner: GraphRunner, feeds: Mapping[str, npt.ArrayLike]
    ) -> dict[str, OutputArray]:
        return runner.run(checked_feeds(feeds, self.inputs, optional=runner.optional))

    def _base(self, how: ServingWord | None) -> GraphRunner:
        """Return the base: in the swappable graph where there is one, unless told otherwise."""
        if how is not None and how not in WAYS:
            msg = f"unknown mode how={how!r} for the base"
            raise UsageError(msg, hint=f"The ways are: {', '.join(WAYS)}.")
        manifest = self._graphs.manifest
        if missing := manifest.base_graph.missing:
            msg = f"the base has no {', '.join(map(repr, missing))}: only adapters bring it"
            raise UnsupportedError(msg, hint=f"Name an adapter: {', '.join(self.adapters)}.")
        if how in {None, ServingMode.SWAPPABLE} and SWAPPABLE_GRAPH in manifest.graphs:
            return self._graphs.swappable().base()
        if how == ServingMode.SWAPPABLE:
            msg = f"the export {str(self._graphs.export_dir)!r} has no swappable graph"
            raise UnsupportedError(msg, hint="Leave how out: the base has a graph of its own.")
        return self._graphs.shared(BASE_GRAPH)

    def _run_batched(
        self, feeds: Mapping[str, npt.ArrayLike], adapter_ids: Sequence[int | str | None]
    ) -> dict[str, OutputArray]:
        if BATCHED_GRAPH not in self._graphs.manifest.graphs:
            msg = (
                f"the export {str(self._graphs.export_dir)!r} has no batched graph for adapter_ids"
            )
            raise UnsupportedError(msg, hint="Export it with --mode batched, or use adapter=….")
        arrays = checked_feeds(feeds, self.inputs)
        count = len(arrays[self.inputs[0].name])
        plain = np.atleast_1d(np.array(adapter_ids, dtype=object))
        rows = [] if isinstance(adapter_ids, str) else list(plain)
        if len(rows) != count:
            msg = f"adapter_ids is {adapter_ids!r}, the batch has {count} row(s)"
            raise UsageError(msg, hint="Give an adapter for each row; None is the base.")
        ids = np.array([self._row(each) for each in rows], np.int64)
        return self._graphs.shared(BATCHED_GRAPH).run({**arrays, ADAPTER_IDS: ids})

    def _row(self, adapter: int | str | None) -> int:
        """Return the row of an adapter in the stacks."""
        rows = self._rows
        if isinstance(adapter, str):
            row = rows.get(adapter, -1)
        else:
            whole = isinstance(adapter, (int, np.integer)) and not isinstance(adapter, bool)
            row = 0 if adapter is None else int(adapter) if whole else -1
        missing = self._graphs.manifest.base_graph.missing
        if row not in rows.values() and (row != 0 or missing):
            what = f"the base has no {missing[0]!r}" if row == 0 else f"there is no row {adapter!r}"
            known = ", ".join(f"{name} ({each})" for name, each in sorted(rows.items())) or "none"
            msg = f"adapter_ids: {what} in the batched graph"
            raise UsageError(msg, hint=f"Its adapters and their rows: {known}.")
        return row
