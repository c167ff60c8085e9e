"""Weights quantized by columns: one scale for a whole column, found in a pass before.

Per-channel ``DequantizeLinear`` of opset 13 and up: values ``[K, N]``, scales ``[N]``. The caller
goes over the weight twice: for max|w| of each column, then for the integers, in pieces of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.halves import all_finite
from lora_export.weights.quantization.ranges import (
    as_float32,
    integer_range,
    max_abs_scales,
    require_range,
    scale_dtype_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = ["channel_scales", "quantize_channels"]


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
    if not bool((maximum >= 0).all()):  # NaN too
        msg = "a column's largest magnitude is negative or not a number"
        raise ValueError(msg)
    require_range(float(maximum.max()), dtype)
    return max_abs_scales(maximum, integers.highest, dtype)


def quantize_channels(
    values: Float32Array, scales: npt.NDArray[Any], *, bits: int
) -> npt.NDArray[np.int8]:
    """Return ``clip(round(w / s))``, ties to even.

    Args:
        values: ``[K', N]``, some rows of the weight.
        scales: ``[N]``, from `channel_scales`.
        bits: 4 or 8.

    Raises:
        ValueError: A value is infinite or NaN, or the shapes do not go together.
    """
    integers = integer_range(bits)
    if scales.shape != values.shape[1:]:
        msg = f"scales {scales.shape} do not go with values {values.shape}"
        raise ValueError(msg)
    if not all_finite(values):
        msg = "a value is infinite or not a number"
        raise ValueError(msg)
    with np.errstate(over="ignore"):  # infinity is clipped
        q = values / as_float32(scales)
    np.rint(q, out=q)
    np.clip(q, integers.lowest, integers.highest, out=q)
    return q.astype(np.int8)
