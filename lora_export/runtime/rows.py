"""A batched graph that runs one adapter in all its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.graph.adapters.batched_graph import ADAPTER_IDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from lora_export.graph.spec.signature import Input
    from lora_export.runtime.ort import OrtRunner

__all__ = ["RowRunner"]


class RowRunner:
    """One adapter of a batched graph.

    Args:
        runner: The graph.
        row: The adapter's row in the stacks; 0 is the base.
        width: How many of the logits the adapter has; None for all.
    """

    def __init__(self, runner: OrtRunner, row: int, width: int | None) -> None:
        self._runner, self._row, self._width = runner, row, width
        self.session, self.adapter = runner.session, runner.adapter
        self.optional: Mapping[str, Input] = {}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; the logits that the adapter does not have are cut off.

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
        """
        found = self._runner.run(self.complete(feeds))
        if self._width is None:
            return found
        first = self._runner.outputs[0]
        return {**found, first: found[first][..., : self._width]}

    def complete(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the feeds with the row's number for each row of the batch."""
        name = next(each for each in self._runner.inputs if each in feeds)
        return {**feeds, ADAPTER_IDS: np.full(len(feeds[name]), self._row, np.int64)}
