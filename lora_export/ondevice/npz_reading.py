"""NumPy's ``.npz`` archives, read without trust: plain numbers of bounded size.

``numpy.load`` evaluates the headers as Python and allocates what they announce. Here a header has
the one form that NumPy writes, and the shape in it has to take exactly the bytes of its member.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import os
import re
import zlib
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from lora_export.ondevice.file_opening import open_file
from lora_export.ondevice.zip_directory import DEFLATED, Member, read_directory

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["DAMAGED_NPZ", "read_npz"]

DAMAGED_NPZ: Final = (OSError, ValueError)
"""What `read_npz` raises of a damaged file."""

_MAGIC: Final = b"\x93NUMPY"
_LENGTHS: Final = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
"""How many bytes the length of the header has, by the format's version."""

_HEADER: Final = re.compile(
    r"\{'descr': '([<>|=]?[biufcUV?]\d{0,4})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), ?\}[ ]*\n"
)
_HEADER_LIMIT_BYTES: Final = 10_000
_MOST_AXES: Final = 32
_SUFFIX: Final = ".npy"


def read_npz(
    path: Path, limit_bytes: int, *, small_bytes: int, most_packed: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file by name; nothing is unpickled.

    Args:
        path: The file.
        limit_bytes: How large it may be, packed and unpacked.
        small_bytes: Up to here it may unpack to whatever it likes.
        most_packed: Above `small_bytes`, to so many times its size at most.

    Raises:
        OSError: It cannot be read, or is not a regular file.
        ValueError: It is not an archive, is too large, or a member is not an array of numbers.
    """
    with open_file(path) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        members = read_directory(stream)
        unpacked = sum(member.size_bytes for member in members.values())
        limit = min(limit_bytes, max(small_bytes, most_packed * size_bytes))
        if size_bytes > limit_bytes or unpacked > limit:
            msg = f"it has {size_bytes} bytes and unpacks to {unpacked}"
            raise ValueError(msg)
        return dict(_read(stream, name, member) for name, member in members.items())


def _read(stream: BinaryIO, name: str, member: Member) -> tuple[str, npt.NDArray[Any]]:
    """Return the name and the values of an array."""
    if not name.endswith(_SUFFIX):
        msg = f"it holds {name[:100]!r}, which is not an array"
        raise ValueError(msg)
    try:
        return name.removesuffix(_SUFFIX), _array(_content(stream, member))
    except ValueError as error:
        msg = f"its member {name[:100]!r}: {error}"
        raise ValueError(msg) from error


def _content(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.start_bytes)
    data = stream.read(member.packed_bytes)
    if member.method == DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(data, member.size_bytes + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
    if len(data) != member.size_bytes or zlib.crc32(data) != member.crc32:
        msg = "it does not have the size or the checksum that the directory says"
        raise ValueError(msg)
    return data


def _array(data: bytes) -> npt.NDArray[Any]:
    """Return the array in NumPy's format."""
    start = len(_MAGIC) + 2
    width = _LENGTHS.get(data[len(_MAGIC) : start], 0)
    if not data.startswith(_MAGIC) or not width:
        msg = "it is not in NumPy's format"
        raise ValueError(msg)
    length = int.from_bytes(data[start : start + width], "little")
    end = start + width + length
    if length > _HEADER_LIMIT_BYTES or end > len(data):
        msg = f"its header claims to have {length} bytes"
        raise ValueError(msg)
    text = data[start + width : end].decode("latin-1")
    header = _HEADER.fullmatch(text)
    if header is None:
        msg = f"its header is not one of plain numbers: {text[:100]!r}"
        raise ValueError(msg)
    shape = tuple(int(size) for size in re.findall(r"\d+", header[3]))
    try:
        dtype = np.dtype(header[1])
    except TypeError as error:
        msg = f"its dtype is {header[1]!r}"
        raise ValueError(msg) from error
    if (
        len(shape) > _MOST_AXES
        or prod(shape) * dtype.itemsize != len(data) - end
        or not dtype.itemsize
    ):
        msg = f"its shape {shape!r} and dtype {header[1]!r} do not take its {len(data) - end} bytes"
        raise ValueError(msg)
    array = np.frombuffer(data, dtype, prod(shape), end)
    return array.reshape(shape, order="F" if header[2] == "True" else "C").copy()
