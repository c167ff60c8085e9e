"""Weights quantized in blocks: a scale for each `block_size` rows of a column.

The layout is that of ``DequantizeLinear(axis=0, block_size)``: values ``[K, N]``, scales
``[K / block_size, N]``. The scale is rounded to its dtype before the integers are computed, so that
``q·s`` as stored is the nearest value. Blocks are independent of each other: a weight cut into
pieces of whole blocks gives the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.compiled import kernels
from lora_export.weights.quantization.block_scales import Rules, fill_blocks
from lora_export.weights.quantization.methods import METHODS
from lora_export.weights.quantization.ranges import (
    as_float32,
    integer_range,
    require_range,
    scale_dtype_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = ["dequantize", "quantize_blocks"]

_MATRIX = 2


def quantize_blocks(
    values: Float32Array,
    *,
    bits: int,
    block_size: int,
    method: str,
    scale_dtype: npt.DTypeLike,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Return integers ``q`` and scales ``s`` with ``q·s`` near `values`.

    Args:
        values: ``[K, N]`` in float32, K a multiple of `block_size`; copied if not contiguous.
        bits: 4 (integers from −8 to 7) or 8 (from −127 to 127).
        block_size: How many rows share a scale.
        method: A name of `METHODS`.
        scale_dtype: float32, float16 or bfloat16.

    Returns:
        q as int8 ``[K, N]``, also for 4 bits; s in `scale_dtype`, ``[K / block_size, N]``, normal
        numbers, positive unless the method has negative ones. A block of zeros has s = 1.

    Raises:
        ValueError: A value is infinite or NaN, or an argument is none of the above.
        OverflowError: A magnitude is past what scales in `scale_dtype` reach to.
    """
    integers, dtype = integer_range(bits), scale_dtype_of(scale_dtype)
    chosen = METHODS.get(method)
    if chosen is None:
        msg = f"method {method!r} is not among {sorted(METHODS)}"
        raise ValueError(msg)
    _require_blocks(values, block_size)
    values = np.ascontiguousarray(values)
    rows, columns = values.shape
    q = np.empty((rows, columns), np.int8)
    scales = np.empty((rows // block_size, columns), dtype.dtype)
    if values.size == 0:
        return q, scales
    rules = Rules(integers, dtype, chosen.candidates[bits], chosen.refinements)
    fill = fill_blocks if kernels is None else _fill_compiled
    require_range(fill(values, q, scales, rules), dtype)
    return q, scales


def _require_blocks(values: Float32Array, block_size: int) -> None:
    if values.dtype != np.float32 or values.ndim != _MATRIX:
        msg = f"values are {values.dtype} with {values.ndim} axes, not a matrix of float32"
        raise ValueError(msg)
    if block_size < 1 or values.shape[0] % block_size:
        msg = f"{values.shape[0]} rows are not a whole number of blocks of {block_size}"
        raise ValueError(msg)


def _fill_compiled(
    values: Float32Array, q: npt.NDArray[np.int8], scales: npt.NDArray[Any], rules: Rules
) -> float:
    """Do what `fill_blocks` does, in the compiled module."""
    kept = scales if scales.dtype == np.float32 else scales.view(np.uint16)
    largest = kernels.quantize_blocks(
        values,
        q,
        kept,
        values.shape[0] // scales.shape[0],
        values.shape[1],
        rules.integers.lowest,
        rules.integers.highest,
        rules.dtype.smallest,
        rules.dtype.code,
        np.array(rules.candidates, np.float32),
        rules.refinements,
    )
    return float(largest)


def dequantize(q: npt.NDArray[np.int8], scales: npt.NDArray[Any], block_size: int) -> Float32Array:
    """Return ``q·s`` in float32: exact for 16-bit scales, else rounded once.

    Args:
        q: ``[K, N]``.
        scales: ``[K / block_size, N]``, or ``[N]`` with a `block_size` of 0: one for a column.
        block_size: How many rows share a scale.

    Raises:
        ValueError: The shapes do not go together.
    """
    rows, columns = q.shape
    wanted = (columns,) if block_size == 0 else (rows // block_size, columns)
    if scales.shape != wanted or (block_size and rows % block_size):
        msg = f"scales {scales.shape} do not go with integers {q.shape} in blocks of {block_size}"
        raise ValueError(msg)
    groups = rows // block_size if block_size else 1
    blocks = q.astype(np.float32).reshape(groups, block_size or rows, columns)
    blocks *= as_float32(scales).reshape(groups, 1, columns)
    return blocks.reshape(rows, columns)
