"""The tar format, as far as a bundle needs it: plain files, one header block each.

POSIX ``ustar`` (IEEE 1003.1, pax utility): blocks of 512 bytes, a header and the data of each
file, two blocks of zeros at the end. Headers are written by `tarfile`. Reading is done here: it
takes plain files only, streams them, and refuses everything else that tar knows (links, devices,
folders, sparse files, names and attributes in blocks of their own) by name before anything is
unpacked (ADR 11).
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from lora_export.core.errors import BundleError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Entry", "end_of_archive", "header_of", "padding_of", "read_entries"]

_BLOCK_BYTES: Final = 512
_NAME_BYTES: Final = 100
_OCTAL_SIZES: Final = 8**11
_BASE_256: Final = 0x80
_CHECKSUM: Final = slice(148, 156)
_MAGIC: Final = b"ustar"
_RECORD_BYTES: Final = 20 * _BLOCK_BYTES
"""Archives are padded to a multiple of this; more than one such record of zeros is none of ours."""

_KINDS: Final[dict[int, str]] = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a character device",
    ord("4"): "a block device",
    ord("5"): "a folder",
    ord("6"): "a named pipe",
    ord("S"): "a sparse file",
    ord("g"): "a block of attributes",
    ord("x"): "a block of attributes",
    ord("K"): "a long name",
    ord("L"): "a long name",
}
_PLAIN: Final = (ord("0"), 0)
_HINT: Final = "A bundle holds plain files only: pack it again with lora-export bundle."


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    Attributes:
        name: Its whole name, not looked at: whoever uses it has to.
        size_bytes: What its header announces.
    """

    name: str
    size_bytes: int


def header_of(folder: str, name: str, size_bytes: int, mode: int) -> bytes:
    """Return the block in front of a file's data; no time, no owner: the same input, same bytes.

    Args:
        folder: The archive's one folder.
        name: The file's path below it.
        size_bytes: Its size.
        mode: Its permissions.

    Raises:
        UnsupportedError: The name is too long for a header.
    """
    if max(len(folder.encode()), len(name.encode())) > _NAME_BYTES:
        msg = f"the name {name!r} is longer than {_NAME_BYTES} bytes"
        raise UnsupportedError(msg, hint="Give the adapter a shorter name.")
    entry = tarfile.TarInfo(f"{folder}/{name}")
    entry.size, entry.mode = size_bytes, mode
    # Only GNU's dialect has sizes from 8 GiB on in the header itself.
    if size_bytes >= _OCTAL_SIZES:
        header = entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    else:
        header = entry.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    if len(header) != _BLOCK_BYTES:  # GNU's dialect puts a long name into blocks of its own
        msg = f"the name {entry.name!r} of a file of 8 GiB or more is longer than a header holds"
        raise UnsupportedError(msg, hint="Give the bundle or the adapter a shorter name.")
    return header


def padding_of(size_bytes: int) -> bytes:
    """Return what follows a file's data, up to the next block."""
    return bytes(-size_bytes % _BLOCK_BYTES)


def end_of_archive(written_bytes: int) -> bytes:
    """Return what closes an archive: two blocks of zeros, and more up to a whole record."""
    closed = written_bytes + 2 * _BLOCK_BYTES
    return bytes(2 * _BLOCK_BYTES + -closed % _RECORD_BYTES)


def read_entries(stream: IO[bytes], archive: str) -> Iterator[Entry]:
    """Yield the files of an archive; before it goes on, the caller has read each one's data.

    Args:
        stream: The archive.
        archive: Its name, for errors.

    Raises:
        BundleError: It is damaged, or holds something that is not a plain file.
    """
    while True:
        block = _read(stream, _BLOCK_BYTES, archive)
        if not any(block):
            _require_end(stream, archive)
            return
        entry = _entry(block, archive)
        yield entry
        if any(_read(stream, -entry.size_bytes % _BLOCK_BYTES, archive)):
            msg = f"{archive!r} has unexpected data between its files"
            raise BundleError(msg, hint=_HINT)


def _read(stream: IO[bytes], size_bytes: int, archive: str) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        msg = f"{archive!r} ends in the middle: it is truncated"
        raise BundleError(msg, hint="Copy it again.")
    return data


def _require_end(stream: IO[bytes], archive: str) -> None:
    """Require that nothing but the zeros that close a record is left."""
    rest = stream.read(_RECORD_BYTES + 1)
    if len(rest) > _RECORD_BYTES or len(rest) < _BLOCK_BYTES or any(rest):
        what = "is truncated" if len(rest) < _BLOCK_BYTES else "continues after its end"
        msg = f"{archive!r} {what}"
        raise BundleError(msg, hint=_HINT)


def _entry(block: bytes, archive: str) -> Entry:
    plain = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    if _octal(block[_CHECKSUM], archive) != sum(plain) or block[257:262] != _MAGIC:
        msg = f"{archive!r} is not a tar archive, or is damaged"
        raise BundleError(msg, hint="Copy it again.")
    prefix = _text(block[345:500]) if block[262] == 0 else ""
    name = _text(block[:_NAME_BYTES])
    name = f"{prefix}/{name}" if prefix else name
    kind = block[156]
    if kind not in _PLAIN:
        msg = f"{name!r} in {archive!r} is {_KINDS.get(kind, 'of an unknown kind')}"
        raise BundleError(msg, hint=_HINT)
    return Entry(name, _number(block[124:136], archive))


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _number(raw: bytes, archive: str) -> int:
    if raw[0] == _BASE_256:
        return int.from_bytes(raw[1:], "big")
    return _octal(raw, archive)


def _octal(raw: bytes, archive: str) -> int:
    digits = raw.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        msg = f"{archive!r} is not a tar archive, or is damaged"
        raise BundleError(msg, hint="Copy it again.")
    return int(digits, 8)
