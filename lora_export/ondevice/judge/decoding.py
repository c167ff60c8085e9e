"""A decoder's logits, computed in pieces with the cache that it returns.

A case is run as a prefill on an empty past (of a static cache, with nothing written), then as
single steps; put together, the logits are those of the whole sequence, which the reference computes
at once and without a cache.

Keys in a cache keep the rotary frequencies that they were computed with. Where the frequencies are
others for texts of more than `switch` positions, the cache of a shorter text cannot be continued
past them: all positions up to there are one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.device_errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.ondevice.graph_runner import GraphRunner

__all__ = [
    "DECODER_IDS",
    "PAST",
    "PRESENT",
    "WRITE_INDICES",
    "Decoder",
    "decode_in_pieces",
    "on_static_cache",
    "run_in_pieces",
    "spans",
    "with_buffers",
    "without_cache",
]

Array = npt.NDArray[Any]

PAST: Final = "past_key_values."
PRESENT: Final = "present."
"""What the names of cache inputs and outputs begin with, as in optimum and ONNX Runtime GenAI."""

WRITE_INDICES: Final = "write_indices"
"""Where each row of a batch has its new positions written in a static cache (ONNX's own name)."""

DECODER_IDS: Final = "decoder_input_ids"
"""Inputs of the decoder, where the encoder has inputs of its own."""

_STEPS: Final = 2
"""Single steps at the end of a case, where it is long enough."""


class Decoder(Protocol):
    """A decoder that remembers the positions it has seen."""

    def start(self, batch: int) -> None:
        """Forget what was seen; `batch` rows follow."""

    def logits(self, feeds: Mapping[str, Array]) -> Array:
        """Run new positions; return their logits, ``[batch, new, vocabulary]``.

        Args:
            feeds: ``input_ids`` and, where the model reads them, ``position_ids`` ``[batch, new]``
                and ``attention_mask`` ``[batch, seen + new]``; int64.
        """


def run_in_pieces(
    graph: GraphRunner,
    feeds: Mapping[str, Array],
    output: str,
    *,
    last: bool = False,
    switch: int | None = None,
) -> Array:
    """Return `output` for `feeds`; in pieces where the graph has a cache.

    Args:
        graph: The graph.
        feeds: Its inputs; the past is empty.
        output: The output's name, with the axes ``[batch, sequence, …]`` where there is a cache.
        last: Whether the graph returns that of the last position only.
        switch: The longest text with the rotary frequencies of short ones; None where all texts
            have the same.
    """
    past = {name: value for name, value in feeds.items() if name.startswith(PAST)}
    if not past:
        return graph.run(feeds)[output]
    text = without_cache(feeds)
    room = feeds["attention_mask"].shape[1] if WRITE_INDICES in feeds else None
    pieces: list[Array] = []
    for start, end in spans(feeds["input_ids"].shape[1], switch):
        piece = {
            name: value[:, :end] if name == "attention_mask" else value[:, start:end]
            for name, value in text.items()
        }
        if room is not None:
            piece = on_static_cache(piece, written=start, length=room)
        outputs = graph.run({**piece, **past})
        pieces.append(outputs[output])
        past = {name: outputs[PRESENT + name.removeprefix(PAST)] for name in past}
    return pieces[-1] if last else np.concatenate(pieces, axis=1)


def decode_in_pieces(decoder: Decoder, ids: Array) -> Array:
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


def on_static_cache(
    feeds: Mapping[str, npt.NDArray[Any]], *, written: int, length: int
) -> dict[str, npt.NDArray[Any]]:
    """Return `feeds` of new positions as a graph with a static cache reads them.

    Args:
        feeds: ``input_ids`` and what else is of the new positions, ``[batch, new]``;
            ``attention_mask`` of the past and the new ones, ``[batch, written + new]``.
        written: How many positions the cache holds, the same in every row.
        length: How many it has room for.

    Raises:
        UsageError: There is no room for the new positions.
    """
    batch, new = feeds["input_ids"].shape
    if written + new > length:
        msg = f"the static cache has room for {length} positions, not for {written + new}"
        raise UsageError(msg, hint="Give shorter texts, or export with a larger --cache-length.")
    mask = np.zeros((batch, length), np.int64)
    mask[:, : written + new] = feeds["attention_mask"]
    return {**feeds, "attention_mask": mask, WRITE_INDICES: np.full(batch, written, np.int64)}


def without_cache(feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return `feeds` of a graph on an empty past as a model without a cache reads them."""
    own = {name: value for name, value in feeds.items() if not name.startswith(PAST)}
    if own.pop(WRITE_INDICES, None) is not None:
        own["attention_mask"] = own["attention_mask"][:, : own["input_ids"].shape[1]]
    return own


def with_buffers(
    feeds: Mapping[str, npt.NDArray[Any]], buffers: Mapping[str, Sequence[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Return `feeds` with the buffers of a static cache; without any, as they are.

    The buffers are full of numbers that nobody has written, which must not be seen.

    Args:
        feeds: Inputs of a graph, ``[batch, …]``.
        buffers: Heads, positions, width and dtype of each buffer.
    """
    random = np.random.default_rng(0)
    made = {}
    for name, (heads, length, width, dtype) in buffers.items():
        shape = (len(feeds["input_ids"]), heads, length, width)
        row = random.standard_normal(width).astype(dtype)
        made[name] = np.ascontiguousarray(np.broadcast_to(row, shape))
    return {**feeds, **made}


def spans(length: int, switch: int | None = None) -> list[tuple[int, int]]:
    """Return where the prefill and each single step begin and end.

    >>> spans(34), spans(34, switch=32), spans(33, switch=32), spans(32, switch=32)
    ([(0, 32), (32, 33), (33, 34)], [(0, 33), (33, 34)], [(0, 33)], [(0, 30), (30, 31), (31, 32)])

    Args:
        length: Positions in all.
        switch: See `run_in_pieces`; a text that outgrows it is prefilled past it.
    """
    least = switch if switch is not None and switch < length else 0
    steps = (length - step for step in range(1, _STEPS + 1))
    starts = [0, *sorted(start for start in steps if start > least)]
    return list(zip(starts, [*starts[1:], length], strict=True))
