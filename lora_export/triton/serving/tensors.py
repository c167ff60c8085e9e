"""Tensors of a safetensors file, by position: nothing is mapped, a short file is an error."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TensorError", "TensorFile", "read_tensors"]

_LIMIT_BYTES = 1 << 27
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class TensorError(Exception):
    """A safetensors file is missing, damaged, or lacks a tensor."""


class TensorFile:
    """An open file whose header has been read; a context manager that closes it.

    Args:
        path: The file.

    Raises:
        TensorError: It is not a safetensors file.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            msg = f"{path.name} is not a file"
            raise TensorError(msg)
        self._stream = path.open("rb")
        try:
            size = os.fstat(self._stream.fileno()).st_size
            length = int.from_bytes(self._stream.read(8), "little")
            if not 0 < length <= min(size - 8, _LIMIT_BYTES):
                msg = f"{path.name} is not a safetensors file"
                raise TensorError(msg)  # noqa: TRY301
            with self._damage():
                self._rows = json.loads(self._stream.read(length))
                self.metadata: dict[str, str] = dict(self._rows.pop("__metadata__", {}))
        except BaseException:
            self._stream.close()
            raise
        self._start, self._available = 8 + length, size - 8 - length

    def __enter__(self) -> TensorFile:  # noqa: PYI034  (Self is not in Python 3.10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return list(self._rows)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return one tensor.

        Raises:
            TensorError: It is missing or damaged.
        """
        with self._damage():
            return _read(self._stream, self._rows[name], self._start, self._available)

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{self._name} is damaged: {type(error).__name__}: {error}"
            raise TensorError(msg) from error


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata.

    Raises:
        TensorError: The file is missing or damaged.
        OSError: The file cannot be opened.
    """
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.names}, file.metadata


def _read(stream: Any, row: dict[str, Any], start: int, available: int) -> np.ndarray[Any, Any]:
    dtype, shape = _DTYPES[row["dtype"]], tuple(row["shape"])
    first, last = row["data_offsets"]
    count = prod(shape) * dtype.itemsize
    if not (
        0 <= first <= last <= available and last - first == count and min(shape, default=0) >= 0
    ):
        msg = f"a tensor of shape {list(shape)} at {first}:{last} of {available} bytes"
        raise ValueError(msg)
    stream.seek(start + first)
    data = stream.read(count)
    if len(data) != count:
        msg = "the file is cut short"
        raise ValueError(msg)
    return np.frombuffer(data, dtype).reshape(shape)
