"""Weights quantized by channels: one scale for a whole column, found in a pass before.

Per-channel ``DequantizeLinear`` (opset 13): values ``[K, N]``, scales ``[N]``. The caller goes over
the weight twice, in pieces of rows: for the largest magnitude of each column, then for the
integers. For one scale per row the transposed view is given: nothing is copied for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.compiled import kernels
from lora_export.core.halves import all_finite
from lora_export.weights.quantization.ranges import (
    as_float32,
    integer_range,
    max_abs_scales,
    require_finite,
    require_range,
    scale_dtype_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.weights.quantization.ranges import IntegerRange

__all__ = ["channel_scales", "largest_magnitudes", "quantize_channels"]


def largest_magnitudes(values: Float32Array) -> Float32Array:
    """Return max|w| of each column, ``[N]``; 0 without rows, not finite where a value is not.

    Args:
        values: ``[K', N]``, some rows of the weight; a transposed view is as fast.
    """
    found = np.zeros(values.shape[1], np.float32)
    if values.size == 0:
        return found
    if kernels is None:
        np.maximum(values.max(axis=0), -values.min(axis=0), out=found)
        return found
    stored, by_rows = _as_stored(values)
    kernels.largest_magnitudes(stored, found, stored.shape[1], by_rows)
    return found


def channel_scales(
    maximum: Float32Array, *, bits: int, scale_dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return ``max|w| / q_max`` of each column, rounded to `scale_dtype`; 1 for columns of zeros.

    Args:
        maximum: max|w| of each column, ``[N]``.
        bits: 4 or 8.
        scale_dtype: float32, float16 or bfloat16.

    Raises:
        ValueError: A maximum is infinite, NaN or negative, or an argument is none of the above.
        OverflowError: A maximum is past what scales in `scale_dtype` reach to.
    """
    integers, dtype = integer_range(bits), scale_dtype_of(scale_dtype)
    maximum = np.ascontiguousarray(maximum, np.float32)
    if maximum.size == 0:
        return np.empty(maximum.shape, dtype.dtype)
    if bool((maximum < 0).any()):
        msg = f"a column's largest magnitude is {float(maximum.min())}"
        raise ValueError(msg)
    require_range(float(maximum.max()), dtype)
    return max_abs_scales(maximum, integers.highest, dtype)


def quantize_channels(
    values: Float32Array, scales: npt.NDArray[Any], *, bits: int
) -> npt.NDArray[np.int8]:
    """Return ``clip(round(w / s))``, ties to even.

    Args:
        values: ``[K', N]``, some rows of the weight. Of a transposed view, a transposed view is
            returned.
        scales: ``[N]``, from `channel_scales`.
        bits: 4 or 8.

    Raises:
        ValueError: A value is infinite or NaN, or the shapes do not go together.
    """
    integers = integer_range(bits)
    if values.dtype != np.float32 or scales.shape != values.shape[1:]:
        msg = f"scales {scales.shape} do not go with values {values.shape} in {values.dtype}"
        raise ValueError(msg)
    stored, by_rows = _as_stored(values)
    q = np.empty(stored.shape, np.int8)
    factors = np.ascontiguousarray(as_float32(scales))
    if q.size:
        fill = _fill if kernels is None else _fill_compiled
        fill(stored, factors, q, integers, by_rows=by_rows)
    return q.T if by_rows else q


def _as_stored(values: Float32Array) -> tuple[Float32Array, bool]:
    """Return the matrix as it lies in memory, and whether its rows are the columns of `values`."""
    if values.flags.c_contiguous or not values.flags.f_contiguous:
        return np.ascontiguousarray(values), False
    return values.T, True


def _fill(
    values: Float32Array,
    scales: Float32Array,
    q: npt.NDArray[np.int8],
    integers: IntegerRange,
    *,
    by_rows: bool,
) -> None:
    require_finite(0.0 if all_finite(values) else float("nan"))
    with np.errstate(over="ignore"):  # infinity is clipped
        quotients = values / (scales[:, None] if by_rows else scales)
    np.rint(quotients, out=quotients)
    np.clip(quotients, integers.lowest, integers.highest, out=quotients)
    q[:] = quotients


def _fill_compiled(
    values: Float32Array,
    scales: Float32Array,
    q: npt.NDArray[np.int8],
    integers: IntegerRange,
    *,
    by_rows: bool,
) -> None:
    largest = kernels.quantize_channels(
        values, scales, q, values.shape[1], by_rows, integers.lowest, integers.highest
    )
    require_finite(largest)
