"""The arithmetic of the methods in NumPy: scales and integers of blocks, in float32.

Values are divided by the largest magnitude of their block first, x = w / m: sums of squares neither
overflow nor vanish then. Sums run over a block's rows from the first to the last, so that their
rounding is the same however the work is cut. With a = <x,q> and b = <q,q>, the best scale for given
integers is m·a/b, and its squared error m²(<x,x> − a²/b): the candidate with the largest a²/b wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.halves import all_finite
from lora_export.weights.quantization.ranges import as_float32, max_abs_scales

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.weights.quantization.ranges import IntegerRange, ScaleDType

__all__ = ["Rules", "fill_blocks"]

_PIECE: Final = 1 << 17
"""Values that are worked on at once: they and what is computed from them fit the cache."""


@dataclass(frozen=True)
class Rules:
    """The rounding of a block's values to integers and a scale.

    Attributes:
        integers: The range of the integers.
        dtype: Of the scales.
        candidates: As in `Method`, for the width at hand.
        refinements: As in `Method`.
    """

    integers: IntegerRange
    dtype: ScaleDType
    candidates: Sequence[float]
    refinements: int


def fill_blocks(
    values: Float32Array, q: npt.NDArray[np.int8], scales: npt.NDArray[Any], rules: Rules
) -> float:
    """Fill `q` ``[K, N]`` and `scales` ``[K / B, N]`` from `values` ``[K, N]``, all contiguous.

    Returns:
        max|values|, NaN where one is not finite. Nothing useful is filled in where the maximum is
        past the limit of the scales' dtype.
    """
    largest = _largest(values)
    if not largest <= rules.dtype.limit:
        return largest
    integers, dtype = rules.integers, rules.dtype
    groups, columns = scales.shape
    size = values.shape[0] // groups
    blocks, integers_of = values.reshape(groups, size, columns), q.reshape(groups, size, columns)
    for group, column in _pieces(groups, size, columns):
        # (groups, B, columns) to (B, groups * columns): every column is one block
        piece = np.ascontiguousarray(blocks[group, :, column].transpose(1, 0, 2))
        w = piece.reshape(size, -1)
        maximum = np.abs(w).max(axis=0)
        chosen = max_abs_scales(maximum, integers.highest, dtype)
        whole = _integers_at(w, as_float32(chosen), integers)
        if rules.candidates:
            np.maximum(maximum, np.float32(dtype.smallest), out=maximum)  # no division by 0
            x = w / maximum
            found = dtype.round(maximum * _search(x, rules))
            other = _integers_at(w, as_float32(found), integers)
            error = _error(x, whole, as_float32(chosen) / maximum)
            better = _error(x, other, as_float32(found) / maximum) < error
            chosen, whole = np.where(better, found, chosen), np.where(better, other, whole)
        scales[group, column] = chosen.reshape(scales[group, column].shape)
        integers_of[group, :, column] = whole.reshape(piece.shape).transpose(1, 0, 2)
    return largest


def _largest(values: Float32Array) -> float:
    return max(float(values.max()), -float(values.min())) if all_finite(values) else float("nan")


def _pieces(groups: int, size: int, columns: int) -> Iterator[tuple[slice, slice]]:
    width = min(columns, max(1, _PIECE // size))
    height = max(1, _PIECE // (size * width))
    for group in range(0, groups, height):
        for column in range(0, columns, width):
            yield slice(group, group + height), slice(column, column + width)


def _search(x: Float32Array, rules: Rules) -> Float32Array:
    """Return s / m of the least squared error that was found, one for each block."""
    integers = rules.integers
    ratio = np.full(x.shape[1], 1 / integers.highest, np.float32)
    best = np.zeros(x.shape[1], np.float32)
    for c in rules.candidates:
        a, b = _products(x, np.float32(c), integers)
        with np.errstate(invalid="ignore"):  # a block of zeros: 0 / 0 wins nothing
            score = a * a / b
        better = score > best
        best[better] = score[better]
        ratio[better] = a[better] / b[better]
    for _ in range(rules.refinements):
        a, b = _products(x, np.float32(1) / ratio, integers)
        np.divide(a, b, out=ratio, where=b > 0)
    return ratio


def _products(
    x: Float32Array, c: np.float32 | Float32Array, integers: IntegerRange
) -> tuple[Float32Array, Float32Array]:
    """Return <x,q> and <q,q> for q = clip(round(x·c)), by rows from the first to the last."""
    q = x * c
    _round(q, integers)
    a, b = np.zeros_like(x[0]), np.zeros_like(x[0])
    term = np.empty_like(a)
    for row, integer in zip(x, q, strict=True):
        a += np.multiply(row, integer, out=term)
        b += np.multiply(integer, integer, out=term)
    return a, b


def _error(x: Float32Array, q: Float32Array, ratio: Float32Array) -> Float32Array:
    """Return ‖x − q·ratio‖² of each block."""
    total = np.zeros_like(ratio)
    term = np.empty_like(ratio)
    for row, integer in zip(x, q, strict=True):
        np.multiply(integer, ratio, out=term)
        np.subtract(row, term, out=term)
        total += np.multiply(term, term, out=term)
    return total


def _integers_at(w: Float32Array, scale: Float32Array, integers: IntegerRange) -> Float32Array:
    q = w / scale
    _round(q, integers)
    return q


def _round(q: Float32Array, integers: IntegerRange) -> None:
    """Round to nearest in place, ties to even, within the range."""
    np.rint(q, out=q)
    np.clip(q, np.float32(integers.lowest), np.float32(integers.highest), out=q)
