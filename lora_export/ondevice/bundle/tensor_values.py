"""The tensors of a safetensors file as arrays, with NumPy alone.

Format: https://huggingface.co/docs/safetensors. The file's hash has been compared before; what is
damaged all the same is an error.
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.ondevice.device_errors import InputError
from lora_export.ondevice.file_opening import open_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["read_values"]

_HEADER_LIMIT_BYTES: Final = 1 << 25
_LARGEST_AXIS: Final = 1 << 48
_DAMAGED: Final = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct.error,
)
_DTYPES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",  # NumPy has no bfloat16: its bits
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_values(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Return tensors of a file; bfloat16 as its bits, ``uint16``.

    Args:
        path: The file.
        names: Which tensors, as far as it has them; all by default.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with open_file(path) as stream:
            left = os.fstat(stream.fileno()).st_size - 8
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_HEADER_LIMIT_BYTES, left):
                msg = f"it announces a header of {length} bytes"
                raise ValueError(msg)
            header = json.loads(stream.read(length).decode("utf-8"))
            header.pop("__metadata__", None)
            wanted = header if names is None else [name for name in names if name in header]
            start = stream.tell()
            return {name: _tensor(stream, start, left - length, header[name]) for name in wanted}
    except _DAMAGED as error:
        msg = f"{str(path)!r} is missing or damaged: {error}"
        raise InputError(msg, hint="Copy the bundle again.") from error


def _tensor(
    stream: IO[bytes], data_start: int, size_bytes: int, row: dict[str, Any]
) -> npt.NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[row["dtype"]]), tuple(row["shape"])
    start, end = row["data_offsets"]
    if not all(type(size) is int and 0 <= size < _LARGEST_AXIS for size in shape):
        msg = f"a tensor has the shape {str(shape)[:100]}"
        raise ValueError(msg)
    if not 0 <= start <= end <= size_bytes:
        msg = f"a tensor's place is given as bytes {start} to {end} of {size_bytes}"
        raise ValueError(msg)
    stream.seek(data_start + start)
    data = stream.read(end - start)
    if len(data) != prod(shape) * dtype.itemsize:
        msg = "a tensor does not lie where its header says"
        raise ValueError(msg)
    return np.frombuffer(data, dtype).reshape(shape)
