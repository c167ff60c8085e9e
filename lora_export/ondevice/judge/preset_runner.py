"""A graph with inputs that are the same in every run, such as one adapter of a shared graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.ondevice.graph_runner import GraphRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.ondevice.graph_runner import Array

__all__ = ["ADAPTER_IDS", "PresetRunner"]

ADAPTER_IDS: Final = "adapter_ids"
"""The input of a batched graph that names an adapter for each row of the batch."""


class PresetRunner(GraphRunner):
    """A runner that adds what is preset to the inputs of every run.

    Args:
        graph: The graph; to close this is to close it.
        values: Inputs for every run: an adapter's tensors, an encoder's output.
        row: The row of a batched graph's stacks that every row of a batch has; None for others.
        width: How many columns of the first output, the logits, the adapter has; None for all.

    Attributes:
        values: Those inputs.
        added: The names of all inputs that are added, the row's included.
    """

    def __init__(
        self,
        graph: GraphRunner,
        values: Mapping[str, Array] | None = None,
        *,
        row: int | None = None,
        width: int | None = None,
    ) -> None:
        self._graph, self._row, self._width = graph, row, width
        self.values = dict(values or {})
        self.added = frozenset(self.values) | ({ADAPTER_IDS} if row is not None else set())
        self.inputs = tuple(name for name in graph.inputs if name not in self.added)
        self.optional = {name: e for name, e in graph.optional.items() if name not in self.added}
        self.outputs = graph.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; logits that the adapter does not have are cut off.

        Raises:
            LoraExportError: See `GraphRunner.run`.
        """
        found = self._graph.run(self.complete(feeds))
        if self._width is None:
            return found
        first = self.outputs[0]
        return {**found, first: found[first][..., : self._width]}

    def complete(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return `feeds` with what is preset, as the graph is run with."""
        whole = {**feeds, **self.values}
        if self._row is not None:
            rows = len(next(feeds[name] for name in self.inputs if name in feeds))
            whole[ADAPTER_IDS] = np.full(rows, self._row, np.int64)
        return whole

    def close(self) -> None:
        """Close the graph."""
        self._graph.close()
