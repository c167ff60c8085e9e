"""The arrays of an ``.npz`` file, numbers alone, of bounded size.

`numpy.load` evaluates each array's header as Python and believes its shape. Here a header has to be
the one that `numpy.save` writes, and the data as long as it says. Format:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.file_opening import open_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DAMAGED_NPZ", "read_npz"]

DAMAGED_NPZ: Final = (
    OSError, ValueError, EOFError, RuntimeError, NotImplementedError, MemoryError, OverflowError,
    lzma.LZMAError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What `read_npz` raises of a damaged file: `zipfile` has no one class for it."""

_SUFFIX: Final = ".npy"
_MAGIC: Final = b"\x93NUMPY"
_HEADER: Final = re.compile(
    r"\{'descr': '([<>|=]?[biufcV?]\d{0,2})', 'fortran_order': (False|True), "
    r"'shape': \(((?:\d{1,18}(?:, \d{1,18}){0,31},?)?)\), \}\s*"
)
_LENGTH_BYTES: Final = {1: 2, 2: 4, 3: 4}
"""The bytes of the header's length, by version of the format."""

_HEADER_LIMIT_BYTES: Final = 1 << 16


def read_npz(path: Path, limit_bytes: int, *, small_bytes: int, most_packed: int) -> dict[str, Any]:
    """Return the arrays of a file by name; nothing is unpickled.

    Args:
        path: The file.
        limit_bytes: How large it may be, packed and unpacked.
        small_bytes: Up to here it may unpack to whatever it likes.
        most_packed: Above `small_bytes`, to so many times its size at most.

    Raises:
        OSError: It cannot be read, or is no regular file.
        ValueError: It is too large, or an array in it is damaged; see `DAMAGED_NPZ` for all.
    """
    with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        size_bytes = stream.seek(0, 2)
        limit = min(limit_bytes, max(small_bytes, most_packed * size_bytes))
        members = archive.infolist()
        unpacked = sum(each.file_size for each in members)
        if size_bytes > limit_bytes or unpacked > limit:
            msg = f"it has {size_bytes} bytes and unpacks to {unpacked}"
            raise ValueError(msg)
        found: dict[str, Any] = {}
        for each in members:
            name = each.filename[: -len(_SUFFIX)]
            if not each.filename.endswith(_SUFFIX) or name in found:
                msg = f"it holds {each.filename!r}, no array of another name"
                raise ValueError(msg)
            with archive.open(each) as member:
                data = member.read(each.file_size + 1)
            found[name] = _array(name, data)
    return found


def _array(name: str, data: bytes) -> npt.NDArray[Any]:
    """Return an array in the format ``.npy``."""
    version = data[len(_MAGIC)] if data.startswith(_MAGIC) and len(data) > len(_MAGIC) else 0
    width = _LENGTH_BYTES.get(version)
    if width is None:
        msg = f"{name!r} is no array of NumPy"
        raise ValueError(msg)
    start = len(_MAGIC) + 2
    length = int.from_bytes(data[start : start + width], "little")
    header = data[start + width : start + width + min(length, _HEADER_LIMIT_BYTES)]
    found = _HEADER.fullmatch(header.decode("latin-1"))
    if found is None:
        msg = f"the header of {name!r} is not one of an array of numbers"
        raise ValueError(msg)
    try:
        dtype = np.dtype(found[1])
    except TypeError as error:
        msg = f"{name!r} has the unknown dtype {found[1]!r}"
        raise ValueError(msg) from error
    shape = tuple(int(each) for each in found[3].split(",") if each.strip())
    values = memoryview(data)[start + width + length :]
    if len(values) != prod(shape) * dtype.itemsize:
        msg = f"{name!r} has {len(values)} bytes, which is not the shape {shape} of {dtype}"
        raise ValueError(msg)
    order: Any = "F" if found[2] == "True" else "C"
    return np.frombuffer(values, dtype).reshape(shape, order=order)
