"""Tensors read in blocks of rows, or of the rows of their transpose.

A weight that the graph stores transposed and that is larger than a slab is read slab by slab of its
columns.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import InputError
from lora_export.core.tensors import ColumnsTensor, bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.core.tensors import Tensor

    Array = npt.NDArray[Any]

__all__ = ["BLOCK_BYTES", "read_block", "read_rows"]

BLOCK_BYTES: Final = 1 << 21
_SLAB_BYTES: Final = 1 << 26
_TILE: Final = 128
_MATRIX: Final = 2
_BLOCK: Final = 256


def read_rows(
    tensor: Tensor, *, transposed: bool, block_bytes: int | None = None
) -> Iterator[tuple[Array, int]]:
    """Yield row blocks of `tensor` (or of its transpose), each with the index of its first row."""
    shape = tensor.shape
    if transposed:
        yield from _read_columns(tensor)
        return
    if len(shape) < 1 or 0 in shape:
        yield read_block(tensor, 0, shape), 0
        return
    row_bytes = prod(shape[1:]) * tensor.dtype.itemsize_bytes
    rows = max(1, (block_bytes or BLOCK_BYTES) // row_bytes)
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        yield read_block(tensor, start * row_bytes, (count, *shape[1:])), start


def read_block(tensor: Tensor, offset_bytes: int, shape: tuple[int, ...]) -> Array:
    """Return the array of `shape` whose bytes begin at `offset_bytes`."""
    block = np.empty(shape, tensor.dtype.numpy)
    tensor.read_into(bytes_of(block), offset_bytes)
    return block


def _read_columns(tensor: Tensor) -> Iterator[tuple[Array, int]]:
    """Yield row blocks of the transpose of a matrix."""
    if len(tensor.shape) != _MATRIX:
        msg = f"tensor {tensor.name!r} has {len(tensor.shape)} axes where a matrix was expected"
        raise InputError(msg, hint="Is this the right base?")
    rows, columns = tensor.shape
    itemsize = tensor.dtype.itemsize_bytes
    narrow = max(1, BLOCK_BYTES // (rows * itemsize))
    narrow -= narrow % _BLOCK if narrow > _BLOCK else 0  # whole blocks of quantized weights
    if rows * columns * itemsize <= _SLAB_BYTES:
        whole = read_block(tensor, 0, tensor.shape)
        for start in range(0, columns, narrow):
            yield _transpose(whole[:, start : start + narrow]), start
        return
    step = max(1, _SLAB_BYTES // (rows * itemsize) // narrow) * narrow
    for start in range(0, columns, step):
        count = min(step, columns - start)
        slab = _read_slab(tensor, start, count)
        for within in range(0, count, narrow):
            yield _transpose(slab[:, within : within + narrow]), start + within


def _read_slab(tensor: Tensor, start: int, count: int) -> Array:
    """Return `count` columns of a matrix, from column `start` on."""
    if isinstance(tensor, ColumnsTensor):
        return tensor.read_columns(start, start + count)
    rows, columns = tensor.shape
    slab = np.empty((rows, count), tensor.dtype.numpy)
    raw = bytes_of(slab)
    itemsize = tensor.dtype.itemsize_bytes
    width = count * itemsize
    for row in range(rows):
        offset = (row * columns + start) * itemsize
        tensor.read_into(raw[row * width : (row + 1) * width], offset)
    return slab


def _transpose(block: Array) -> Array:
    """Return the transpose, copied in tiles that fit the cache (three times as fast as at once)."""
    result = np.empty(block.shape[::-1], block.dtype)
    for start in range(0, block.shape[0], _TILE):
        result[:, start : start + _TILE] = block[start : start + _TILE].T
    return result
