"""A graph as the model that it computes, for parity and data sets: one output, or a decoder.

Both classes are a `lora_export.verification.datasets.questions.Model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from lora_export.ondevice.judge.golden_checks import Reading, read_output
from lora_export.runtime.ort_decoder import OrtDecoder
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord
    from lora_export.graph.spec.tasks import Task
    from lora_export.runtime.ort import OrtRunner

__all__ = ["GraphModel", "PairModel", "open_model"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GraphModel:
    """One graph, of its own or shared by adapters."""

    runner: OrtRunner
    task: Task
    outputs: Sequence[str]
    last: bool
    switch: int | None = None

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Return the output as the reference gives it; a decoder is run in pieces."""
        reading = Reading(tuple(self.outputs), self.task.per_token, self.task.classifies, self.last)
        return read_output(self.runner, feeds, reading, switch=self.switch)

    def decoder(self, feeds: Mapping[str, Array]) -> OrtDecoder:
        """Return a decoder for the rows of `feeds`, its cache empty."""
        del feeds
        return OrtDecoder(self.runner)


@dataclass(frozen=True)
class PairModel:
    """An encoder and a decoder."""

    pair: OrtEncoderDecoder

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Return the output as the reference gives it; a decoder is run in pieces."""
        return self.pair.run(feeds)["logits"]

    def encoder_output(self, feeds: Mapping[str, Array]) -> Array:
        """Return the encoder's output, ``[batch, length, width]``."""
        return self.pair.encode(feeds)[1]

    def decoder(self, feeds: Mapping[str, Array]) -> OrtDecoder:
        """Return a decoder for the rows of `feeds`, its cache empty."""
        return self.pair.encode(feeds)[0]


def open_model(
    export_dir: Path,
    record: GraphRecord,
    task: Task,
    open_runner: Callable[[], OrtRunner],
    *,
    outputs: Sequence[str],
    last: bool,
    switch: int | None = None,
    exact: bool = False,
) -> GraphModel | PairModel:
    """Open the graph of a record.

    Args:
        export_dir: The export directory.
        record: The graph.
        task: The export's task.
        open_runner: Opens a single graph, with the adapter where it shares one.
        outputs: The graph's names for the task's outputs, in their order.
        last: Whether a decoder returns the logits of the last position only.
        switch: See `lora_export.ondevice.judge.decoding.run_in_pieces`.
        exact: See `OrtRunner`, for the two graphs that are opened here.
    """
    if record.encoder is not None:
        return PairModel(OrtEncoderDecoder(export_dir, record, exact=exact))
    return GraphModel(open_runner(), task, outputs, last, switch)
