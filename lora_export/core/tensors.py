"""Tensors on disk, as values: name, dtype, shape, and bytes in blocks."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import InputError
from lora_export.ondevice.file_opening import open_descriptor, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from lora_export.core.dtypes import DType

__all__ = [
    "BLOCK_BYTES",
    "ColumnsTensor",
    "ComposedTensor",
    "FileHandle",
    "FileTensor",
    "MatrixTensor",
    "MemoryTensor",
    "Tensor",
    "bytes_of",
    "count_stored",
    "is_shape",
    "iter_blocks",
    "nbytes",
    "read_all",
    "same_values",
    "sha256_of_tensor",
]

BLOCK_BYTES: Final = 1 << 22
_MOST_AXES: Final = 32
_WIDEST_BYTES: Final = 8


class Tensor(Protocol):
    """A tensor whose bytes (C order, little endian) can be read piece by piece."""

    @property
    def name(self) -> str:
        """The name in the file it comes from."""

    @property
    def dtype(self) -> DType:
        """The stored dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""


@runtime_checkable
class ColumnsTensor(Protocol):
    """A matrix whose columns can be read without the rest of its rows."""

    def read_columns(self, first: int, last: int) -> npt.NDArray[Any]:
        """Return columns `first` to `last` of all rows."""


class FileHandle:
    """A read-only file, opened on first use and shared by the tensors in it (thread-safe)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` from `offset_bytes`; raise `InputError` where the file ends too early."""
        done = 0
        while done < len(buffer):
            count = self._read(buffer[done:], offset_bytes + done)
            if count == 0:
                msg = (
                    f"{str(self.path)!r} ends at byte {offset_bytes + done}, in the middle of data"
                )
                raise InputError(msg, hint="The file is truncated: download or copy it again.")
            done += count

    def _read(self, buffer: memoryview, offset_bytes: int) -> int:
        try:
            return os.preadv(self._open(), [buffer], offset_bytes)
        except OSError as error:
            msg = f"cannot read {str(self.path)!r}: {reason_of(error)}"
            raise InputError(msg, hint="Check the file and its disk.") from error

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = open_descriptor(self.path)
            return self._descriptor

    def __del__(self) -> None:
        """Close the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)


@dataclass(frozen=True)
class FileTensor:
    """A tensor stored contiguously in a file, read with ``pread``."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: FileHandle = field(repr=False)
    start_bytes: int

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        self.file.read_into(buffer, self.start_bytes + offset_bytes)


@dataclass(frozen=True)
class MemoryTensor:
    """A small tensor held in memory."""

    name: str
    dtype: DType
    values: npt.NDArray[Any] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.values.shape

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the array's bytes from `offset_bytes` on."""
        raw = bytes_of(np.ascontiguousarray(self.values))
        buffer[:] = raw[offset_bytes : offset_bytes + len(buffer)]


@dataclass(frozen=True)
class ComposedTensor:
    """A small tensor that is computed from others when it is read.

    Attributes:
        name: What it is called.
        dtype: Its dtype.
        shape: Its shape.
        sources: The tensors that it is made of.
        compose: Returns its values, in `dtype` and `shape`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[Tensor, ...] = field(repr=False)
    compose: Callable[[], npt.NDArray[Any]] = field(repr=False, compare=False)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        raw = bytes_of(np.ascontiguousarray(self.compose(), self.dtype.numpy))
        buffer[:] = raw[offset_bytes : offset_bytes + len(buffer)]


@dataclass(frozen=True)
class MatrixTensor:
    """A tensor of three or more axes as a matrix of its innermost rows."""

    whole: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.whole.name

    @property
    def dtype(self) -> DType:
        """The tensor's dtype."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``[rows, columns]``."""
        return (prod(self.whole.shape[:-1]), self.whole.shape[-1])

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        self.whole.read_into(buffer, offset_bytes)


def bytes_of(values: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array, without a copy."""
    return values.reshape(-1).view(np.uint8).data


def nbytes(tensor: Tensor) -> int:
    """Return the bytes that the whole of `tensor` takes."""
    return prod(tensor.shape) * tensor.dtype.itemsize_bytes


def is_shape(shape: Sequence[int]) -> bool:
    """Whether an array can have a shape: NumPy multiplies the axes that are not 0, in 63 bits.

    >>> [is_shape(shape) for shape in ((), (0, 3), (0, 2**63), (2**32, 2**32), (-1,))]
    [True, True, False, False, False]
    """
    if len(shape) > _MOST_AXES or any(size < 0 for size in shape):
        return False
    return prod(size for size in shape if size) * _WIDEST_BYTES < 1 << 63


def read_all(tensor: Tensor) -> npt.NDArray[Any]:
    """Return the whole of `tensor` as an array; for what is known to be small."""
    values = np.empty(tensor.shape, tensor.dtype.numpy)
    tensor.read_into(bytes_of(values), 0)
    return values


def count_stored(tensors: Iterable[Tensor]) -> int:
    """Return how many tensors their files hold for `tensors`.

    Parts of one (``whole``) are one, and one that is composed of several (``sources``) is these.
    """
    return len({id(source) for tensor in tensors for source in _stored(tensor)})


def _stored(tensor: Tensor) -> Iterator[Tensor]:
    sources = getattr(tensor, "sources", None)
    if sources is None:
        yield getattr(tensor, "whole", tensor)
        return
    for source in sources:
        yield from _stored(source)


def same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes, compared block by block."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    pairs = zip(iter_blocks(first), iter_blocks(second), strict=True)
    return all(a == b for a, b in pairs)


def sha256_of_tensor(tensor: Tensor, advance: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a tensor's bytes in hexadecimal, reading it in blocks.

    Args:
        tensor: The tensor.
        advance: Told the number of bytes after each block.

    Raises:
        InputError: The file ends before the tensor does.
    """
    digest = hashlib.sha256()
    for block in iter_blocks(tensor):
        digest.update(block)
        if advance is not None:
            advance(len(block))
    return digest.hexdigest()


def iter_blocks(tensor: Tensor, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """Yield the tensor's bytes in order; each view is valid until the next one is asked for."""
    total = nbytes(tensor)
    buffer = memoryview(bytearray(min(block_bytes, total)))
    for start in range(0, total, block_bytes):
        block = buffer[: min(block_bytes, total - start)]
        tensor.read_into(block, start)
        yield block
