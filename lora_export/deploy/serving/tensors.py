"""Tensors of a safetensors file, by position: nothing is mapped, a short file is an error."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["TensorError", "read_tensors"]

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


def read_tensors(
    path: Path, names: Iterable[str] | None = None
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Return tensors of a file by name, and its metadata.

    Args:
        path: The file.
        names: The tensors to read; None for all.

    Raises:
        TensorError: The file or a tensor is missing or damaged.
        OSError: The file cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size - 8, _LIMIT_BYTES):
            msg = f"{path.name} is no safetensors file"
            raise TensorError(msg)
        try:
            header = json.loads(stream.read(length))
            metadata = header.pop("__metadata__", {})
            rows = {name: header[name] for name in (header if names is None else names)}
            return {
                name: _read(stream, row, 8 + length, size - 8 - length)
                for name, row in rows.items()
            }, dict(metadata)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{path.name} is damaged: {type(error).__name__}: {error}"
            raise TensorError(msg) from error


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
