"""A decoder's logits, computed in pieces with the cache that it returns.

A case is run as a prefill on an empty past, then as single steps; put together, the logits are
those of the whole sequence, which the reference computes at once and without a cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PAST", "PRESENT", "Graph", "StepDecoder", "decode_in_pieces", "run_in_pieces", "spans"]

Array = npt.NDArray[Any]

PAST: Final = "past_key_values."
PRESENT: Final = "present."
"""What the names of cache inputs and outputs begin with, as in optimum and ONNX Runtime GenAI."""

_STEPS: Final = 2
"""Single steps at the end of a case, where it is long enough."""


class Graph(Protocol):
    """Something that computes named outputs from named inputs."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for `feeds`."""


class StepDecoder(Protocol):
    """A decoder that remembers the positions it has seen."""

    def start(self, batch: int) -> None:
        """Forget what was seen; `batch` rows follow."""

    def logits(self, feeds: Mapping[str, Array]) -> Array:
        """Run new positions; return their logits, ``[batch, new, vocabulary]``."""


def run_in_pieces(
    graph: Graph, feeds: Mapping[str, Array], output: str, *, last: bool = False
) -> Array:
    """Return `output` for `feeds`; in pieces where the graph has a cache.

    Args:
        graph: The graph.
        feeds: Its inputs; the past is empty.
        output: The output's name, with the axes ``[batch, sequence, …]`` where there is a cache.
        last: Whether the graph returns that of the last position only.
    """
    past = {name: value for name, value in feeds.items() if name.startswith(PAST)}
    if not past:
        return graph.run(feeds)[output]
    length = feeds["input_ids"].shape[1]
    pieces: list[Array] = []
    for start, end in spans(length):
        piece = {
            name: value[:, :end] if name == "attention_mask" else value[:, start:end]
            for name, value in feeds.items()
            if name not in past
        }
        outputs = graph.run({**piece, **past})
        pieces.append(outputs[output])
        past = {name: outputs[PRESENT + name.removeprefix(PAST)] for name in past}
    return pieces[-1] if last else np.concatenate(pieces, axis=1)


def decode_in_pieces(decoder: StepDecoder, ids: Array) -> Array:
    """Return the logits ``[batch, length, vocabulary]`` of `ids`, in pieces, with the cache.

    Args:
        decoder: A decoder that keeps its cache, on the encoder's output for the same rows.
        ids: The decoder's text, ``[batch, length]``.
    """
    decoder.start(len(ids))
    pieces = [
        decoder.logits({"input_ids": ids[:, start:end]}) for start, end in spans(ids.shape[1])
    ]
    return np.concatenate(pieces, axis=1)


def spans(length: int) -> list[tuple[int, int]]:
    """Return where the prefill and each single step begin and end."""
    starts = sorted({0, *(max(0, length - step) for step in range(1, _STEPS + 1))})
    return list(zip(starts, [*starts[1:], length], strict=True))
