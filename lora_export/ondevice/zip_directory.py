"""The directory of a zip archive, read strictly: nothing is announced that is not in the file.

PyTorch's files and NumPy's ``.npz`` are zip archives. Libraries believe what the directory of one
says: sizes, disks, places. Here each entry is compared with the file and with the header in front
of its data, before a byte of a member is read. Format:
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. The standard library alone: host and
device share it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Final

__all__ = ["DEFLATED", "STORED", "Member", "is_zip", "read_directory"]

STORED: Final = 0
"""The method of a member that is not compressed."""

DEFLATED: Final = 8

_FIRST: Final = b"PK\x03\x04"
_END: Final = struct.Struct("<4s4H2LH")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64: Final = struct.Struct("<4sLQL")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_EXTRA: Final = struct.Struct("<2H")
_EXTRA_64: Final = 1
_FULL: Final = 0xFFFFFFFF
_FULL_16: Final = 0xFFFF
_LOCKED: Final = 0x2061
"""Flags: encrypted, a patch, strongly encrypted, a hidden directory."""

_UTF_8: Final = 0x800
_MOST_MEMBERS: Final = 1 << 18
_MOST_DIRECTORY_BYTES: Final = 1 << 26


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        start_bytes: Where its data begin in the archive.
        packed_bytes: How many there are.
        size_bytes: How many they are unpacked, as the directory says.
        method: `STORED` or `DEFLATED`.
        crc32: The checksum of the unpacked data.
    """

    start_bytes: int
    packed_bytes: int
    size_bytes: int
    method: int
    crc32: int


def is_zip(stream: BinaryIO) -> bool:
    """Whether a file begins as an archive does; leaves the position at the beginning."""
    stream.seek(0)
    start = stream.read(len(_FIRST))
    stream.seek(0)
    return start == _FIRST


def read_directory(stream: BinaryIO) -> dict[str, Member]:
    """Return the members of an archive by name.

    Raises:
        ValueError: It is not an archive, has several disks, a comment, encrypted members, members
            of equal names, members that lie over each other or past the directory, or a method of
            compression that is not read.
        OSError: It cannot be read.
    """
    start, size_bytes, count = _directory(stream)
    raw = _read(stream, start, size_bytes)
    found: dict[str, Member] = {}
    places: list[tuple[int, int]] = []
    position = 0
    for _ in range(count):
        name, member, local, position = _member(stream, raw, position, start)
        if name in found:
            msg = f"it has two members {name[:100]!r}"
            raise ValueError(msg)
        found[name] = member
        places.append((local, member.start_bytes + member.packed_bytes))
    if position != len(raw):
        msg = f"its directory has {len(raw)} bytes, its {count} entries {position}"
        raise ValueError(msg)
    places.sort()
    for (_, end), (following, _) in pairwise(places):
        if following < end:
            msg = "members of it lie over each other"
            raise ValueError(msg)
    return found


def _directory(stream: BinaryIO) -> tuple[int, int, int]:
    """Return where the directory begins, its size, and the number of its entries."""
    total = stream.seek(0, os.SEEK_END)
    end = total - _END.size
    if end < 0:
        msg = "it is shorter than an empty archive"
        raise ValueError(msg)
    sign, *numbers, comment = _END.unpack(_read(stream, end, _END.size))
    if sign != b"PK\x05\x06" or comment:
        msg = "it does not end as an archive does: it is truncated, or no zip file"
        raise ValueError(msg)
    place = end - _LOCATOR_64.size
    locator = _LOCATOR_64.unpack(_read(stream, place, _LOCATOR_64.size)) if place >= 0 else (b"",)
    if locator[0] == b"PK\x06\x07":
        _, disk, end, disks = locator
        if disk or disks > 1 or end > place - _END_64.size:
            msg = "it is one of several disks of an archive"
            raise ValueError(msg)
        sign, _, _, _, *wide = _END_64.unpack(_read(stream, end, _END_64.size))
        pairs = zip(numbers, wide, strict=True)
        if sign != b"PK\x06\x06" or not all(a in {b, _FULL, _FULL_16} for a, b in pairs):
            msg = "the two ends of its directory say different things"
            raise ValueError(msg)
        numbers = wide
    disk, first_disk, here, count, size_bytes, start = numbers
    if disk or first_disk or here != count:
        msg = "it is one of several disks of an archive"
        raise ValueError(msg)
    if start + size_bytes != end:
        msg = f"its directory's place is given as bytes {start} to {start + size_bytes}, not {end}"
        raise ValueError(msg)
    if count > _MOST_MEMBERS or size_bytes > _MOST_DIRECTORY_BYTES:
        msg = f"it has {count} members"
        raise ValueError(msg)
    return start, size_bytes, count


def _member(
    stream: BinaryIO, raw: bytes, position: int, directory: int
) -> tuple[str, Member, int, int]:
    """Return name, member, the place of its header, and where the next entry begins."""
    if position + _ENTRY.size > len(raw):
        msg = "its directory ends too early"
        raise ValueError(msg)
    fields = _ENTRY.unpack_from(raw, position)
    sign, _, _, flags, method, _, _, crc32, packed, size, *lengths = fields
    name_bytes, extra_bytes, comment_bytes, disk, _, _, local = lengths
    begin = position + _ENTRY.size
    name, extra = raw[begin : begin + name_bytes], raw[begin + name_bytes :][:extra_bytes]
    following = begin + name_bytes + extra_bytes + comment_bytes
    if sign != b"PK\x01\x02" or following > len(raw):
        msg = "its directory is damaged"
        raise ValueError(msg)
    text = name.decode("utf-8" if flags & _UTF_8 else "cp437", "backslashreplace")
    what = f"its member {text[:100]!r}"
    if disk or flags & _LOCKED:
        msg = f"{what} is {'on another disk' if disk else 'encrypted'}"
        raise ValueError(msg)
    size, packed, local = _wide(extra, (size, packed, local))
    if method not in {STORED, DEFLATED} or (method == STORED and packed != size):
        msg = f"{what} is compressed by the method {method}, {packed} bytes for {size}"
        raise ValueError(msg)
    if local + _LOCAL.size > directory:
        msg = f"{what} lies past its end"
        raise ValueError(msg)
    sign, *_, name_bytes, extra_bytes = _LOCAL.unpack(_read(stream, local, _LOCAL.size))
    start = local + _LOCAL.size + name_bytes + extra_bytes
    if sign != _FIRST or _read(stream, local + _LOCAL.size, name_bytes) != name:
        msg = f"{what} is not where the directory says"
        raise ValueError(msg)
    if start + packed > directory:
        msg = f"{what} passes its end"
        raise ValueError(msg)
    return text, Member(start, packed, size, method, crc32), local, following


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return size, packed size and place, those of 64 bits from the extra field."""
    position, wide = 0, b""
    while position + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, position)
        position += _EXTRA.size
        if kind == _EXTRA_64:
            wide = extra[position : position + length]
        position += length
    found = []
    for value in values:
        if value == _FULL:
            if len(wide) < 8:  # noqa: PLR2004  (bytes of a number)
                msg = "a member of 4 GiB or more has no size"
                raise ValueError(msg)
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]  # noqa: PLW2901
        found.append(value)
    size, packed, local = found
    return size, packed, local


def _read(stream: BinaryIO, start: int, size_bytes: int) -> bytes:
    stream.seek(start)
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        msg = "it is truncated"
        raise ValueError(msg)
    return data
