"""Int4 tensors as ONNX stores them: two to a byte, row by row, the first in the lower half.

Source: https://onnx.ai/onnx/technical/int4.html, and ``TensorProto.raw_data`` in onnx.proto.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.compiled import kernels

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["pack_int4", "unpack_int4"]


def pack_int4(q: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return integers from −8 to 7 as two's complement halves of bytes.

    Args:
        q: Any shape with an even number of elements, taken row by row.

    Returns:
        Flat, half as many bytes.

    Raises:
        ValueError: The number of elements is odd, or the dtype is not int8.
    """
    if q.dtype != np.int8:
        msg = f"integers of 4 bits are given as int8, not {q.dtype}"
        raise ValueError(msg)
    if q.size % 2:
        msg = f"{q.size} integers of 4 bits are not a whole number of bytes"
        raise ValueError(msg)
    flat = np.ascontiguousarray(q).reshape(-1)
    packed = np.empty(flat.size // 2, np.uint8)
    if kernels is not None:
        kernels.pack_int4(flat, packed)
        return packed
    pairs = flat.view(np.uint8).reshape(-1, 2)
    np.left_shift(pairs[:, 1], 4, out=packed)
    packed |= pairs[:, 0] & np.uint8(0xF)
    return packed


def unpack_int4(packed: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """Return the integers of `packed` as int8 of `shape`.

    Args:
        packed: Bytes, as `pack_int4` gives them.
        shape: Of the tensor.

    Raises:
        ValueError: The shape has another number of elements.
    """
    raw = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
    if prod(shape) != 2 * raw.size:
        msg = f"{raw.size} bytes hold {2 * raw.size} integers of 4 bits, not those of {shape}"
        raise ValueError(msg)
    q = np.empty((raw.size, 2), np.int8)
    signed = raw.view(np.int8)
    np.right_shift(signed << np.int8(4), 4, out=q[:, 0])
    np.right_shift(signed, 4, out=q[:, 1])
    return q.reshape(shape)
