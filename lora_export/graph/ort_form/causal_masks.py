"""The mask of an attention, as `GroupQueryAttention` knows it: causal, with a window or without.

The operator takes no mask: a query sees its own position and those before it, at most ``window`` of
them, padding left out. Whether a mask in the graph says just this is found by computing it, for
several lengths of past and new positions, with padding and without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import UnsupportedError
from lora_export.graph.ort_form.evaluation import InputSlice

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

__all__ = ["window_of_mask"]

Array = npt.NDArray[Any]

_MASKED: Final = -1e4
"""The largest bias of a masked score, in float16 too."""
_LONG: Final = 4096
"""The past that windows are looked for in, where the config names no number of positions."""
_SHORT_WINDOW: Final = 64
_HINT: Final = "Leave --graph-form ort out: the portable form has any mask."


def window_of_mask(model: onnx.ModelProto, mask: str, positions: int | None) -> int | None:
    """Return how many positions a query sees, its own among them; None for all before it.

    Args:
        model: The graph.
        mask: What is added to the scores, ``[batch or 1, 1, new, all]``.
        positions: How many positions a text has at most, where that is known.

    Raises:
        UnsupportedError: It says something else than causality, a window and padding.
    """
    value = InputSlice(model, mask)
    if value.reads_weights:
        msg = f"the mask of an attention ({mask!r}) follows from weights: it is a learned bias"
        raise UnsupportedError(msg, hint=_HINT)
    past = max(positions or _LONG, 2) - 1
    row = _seen(value, mask, _feeds(model, np.ones((1, past + 1), np.int64), 1))[0, -1]
    window = int(row[::-1].argmin()) if not row.all() else None
    for attention_mask, new in _cases(window):
        feeds = _feeds(model, attention_mask, new)
        seen, expected = _seen(value, mask, feeds), _expected(attention_mask, new, window)
        real = attention_mask[:, -new:].astype(bool)
        if not np.array_equal(np.broadcast_to(seen, expected.shape)[real], expected[real]):
            msg = (
                f"the mask of an attention ({mask!r}) is not causal: GroupQueryAttention of ONNX "
                "Runtime has no other"
            )
            raise UnsupportedError(msg, hint=_HINT)
    return window


def _cases(window: int | None) -> Iterator[tuple[Array, int]]:
    """Yield masks of tokens ``[batch, all]``, and how many positions at their end are new."""
    padded = np.ones((3, 6), np.int64)
    padded[1, :2] = 0
    padded[2, :4] = 0
    yield padded, 6
    yield padded, 1
    yield np.ones((1, 8), np.int64), 1
    yield np.ones((2, 9), np.int64), 4
    if window is None:
        return
    for total in range(max(window - 1, 1), window + 3):
        yield np.ones((1, total), np.int64), 1
    if window <= _SHORT_WINDOW:
        yield np.ones((2, window + 4), np.int64), window + 4
        yield np.ones((1, 2 * window + 3), np.int64), window + 1


def _feeds(model: onnx.ModelProto, attention_mask: Array, new: int) -> dict[str, Array]:
    """Return inputs of these sizes; keys and values of the past have no values of interest."""
    batch, total = attention_mask.shape
    positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, total - new :]
    feeds = {
        "input_ids": np.zeros((batch, new), np.int64),
        "attention_mask": attention_mask,
        "position_ids": positions,
    }
    sizes = {"batch": batch, "past_sequence": total - new, "sequence": new, "total_sequence": total}
    for each in model.graph.input:
        if each.name not in feeds:
            axes = each.type.tensor_type.shape.dim
            shape = [axis.dim_value or sizes.get(axis.dim_param, 1) for axis in axes]
            feeds[each.name] = np.broadcast_to(np.zeros((), np.float32), shape)
    return feeds


def _seen(value: InputSlice, mask: str, feeds: dict[str, Array]) -> Array:
    """Return which positions count, ``[batch or 1, new, all]``.

    Raises:
        UnsupportedError: Scores are changed by something else than minus infinity, or differently
            for each head.
    """
    added = value(feeds)
    if added.ndim != 4 or added.shape[1] != 1:  # noqa: PLR2004  (batch, heads, new, all)
        msg = f"the mask of an attention ({mask!r}) has the shape {list(added.shape)}: one per head"
        raise UnsupportedError(msg, hint=_HINT)
    counts = added[:, 0] == 0
    if not (counts | (added[:, 0] <= _MASKED)).all():
        msg = f"the mask of an attention ({mask!r}) is a bias, as ALiBi is"
        raise UnsupportedError(msg, hint=_HINT)
    return np.asarray(counts)


def _expected(attention_mask: Array, new: int, window: int | None) -> Array:
    total = attention_mask.shape[1]
    queries = np.arange(total - new, total)[:, None]
    keys = np.arange(total)[None, :]
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    found: Array = seen[None] & attention_mask[:, None, :].astype(bool)
    return found
