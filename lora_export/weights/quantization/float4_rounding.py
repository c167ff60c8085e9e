"""Rounding to four-bit floats in blocks, and back.

    s_j  = max |w| of block j             code = argmin_c |VALUES[c] − w / s_j|
    w'   = VALUES[code] · s_j

Blocks run along the rows; the scales are rounded to their dtype before the codes are found.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.four_bit_floats import FLOAT4_VALUES

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.four_bit_floats import Float4Name

    Array = npt.NDArray[Any]

__all__ = ["float4_values", "pack_codes", "quantize_float4", "unpack_codes"]


@cache
def float4_values(name: Float4Name) -> Float32Array:
    """Return the value of each code, ``[16]``."""
    return np.array(FLOAT4_VALUES[name], np.float32)


def quantize_float4(
    rows: Float32Array, name: Float4Name, *, block_size: int, scale_dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.uint8], Array]:
    """Return the codes ``[out, in]`` and scales ``[out, in / block]`` of some rows.

    Args:
        rows: The weights, ``[out, in]``; the block size divides the inputs.
        name: The kind of floats.
        block_size: How many inputs share a scale.
        scale_dtype: The dtype of the scales.
    """
    blocks = rows.reshape(rows.shape[0], -1, block_size)
    with np.errstate(over="ignore"):
        scales = np.abs(blocks).max(-1).astype(scale_dtype)
    exact = scales.astype(np.float32)
    divisors = np.where(exact > 0, exact, np.float32(1))
    values = float4_values(name)
    order = np.argsort(values, kind="stable").astype(np.uint8)
    between = (values[order][1:] + values[order][:-1]) / 2
    codes = order[np.searchsorted(between, blocks / divisors[..., None])]
    return codes.reshape(rows.shape), scales


def pack_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return codes two to a byte in C order, the first in the high half; an even number of them."""
    pairs = np.ascontiguousarray(codes).reshape(-1, 2)
    return np.asarray(pairs[:, 0] << 4 | pairs[:, 1], np.uint8)


def unpack_codes(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the codes of bytes, ``[n]`` → ``[2n]``."""
    return np.stack([packed >> 4, packed & 15], -1).reshape(-1)
