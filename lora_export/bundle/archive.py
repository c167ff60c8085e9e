"""Reading of a bundle's archive without trusting it: the index first, then each file."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from lora_export.bundle.tar_file import read_entries
from lora_export.core.errors import BundleError
from lora_export.ondevice.bundle.bundle_index import (
    INDEX_LIMIT_BYTES,
    INDEX_NAME,
    Index,
    Member,
    check_name,
    parse_index,
)
from lora_export.ondevice.file_opening import open_file, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lora_export.bundle.tar_file import Entry

__all__ = ["Archive", "damage_errors", "open_archive"]

_BLOCK_BYTES: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_MOST_PACKED: Final = 100
_SMALL_BYTES: Final = 1 << 24
"""Below this a bundle may be packed as well as it can be."""

_AGAIN: Final = "Copy it again, or pack it again: lora-export bundle."


@dataclass(frozen=True)
class Archive:
    """An archive whose index was read; the files follow.

    Attributes:
        where: Its name, for errors.
        stream: The archive, behind the index.
        entries: The entries behind the index.
        index: The index.
        raw: The index as it is stored.
    """

    where: str
    stream: IO[bytes] = field(repr=False)
    entries: Iterator[Entry] = field(repr=False)
    index: Index
    raw: bytes = field(repr=False)

    def files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Yield each file's path and its blocks, which have to be read before the next file.

        Raises:
            BundleError: A file is not in the index, comes twice, has another size or SHA-256, or is
                missing; or the archive is damaged.
        """
        left = dict(self.index.files)
        folder = f"{self.index.name}/"
        for entry in self.entries:
            name = entry.name.removeprefix(folder)
            check_name(name, self.where)
            member = left.pop(name, None) if entry.name.startswith(folder) else None
            if member is None:
                twice = " twice" if name in self.index.files else ", which its index does not name"
                msg = f"{self.where!r} holds {entry.name!r}{twice}"
                raise BundleError(msg, hint=_AGAIN)
            if entry.size_bytes != member.size_bytes:
                msg = (
                    f"{entry.name!r} in {self.where!r} has {entry.size_bytes} bytes, the index "
                    f"says {member.size_bytes}"
                )
                raise BundleError(msg, hint=_AGAIN)
            yield name, self._blocks(name, member)
        if left:
            msg = f"{self.where!r} has no {min(left)!r}"
            raise BundleError(msg, hint=_AGAIN)

    def _blocks(self, name: str, member: Member) -> Iterator[bytes]:
        digest, left = hashlib.sha256(), member.size_bytes
        while left:
            block = self.stream.read(min(left, _BLOCK_BYTES))
            if not block:
                msg = f"{self.where!r} ends in the middle: it is truncated"
                raise BundleError(msg, hint="Copy it again.")
            digest.update(block)
            left -= len(block)
            yield block
        if digest.hexdigest() != member.sha256:
            msg = f"{name!r} in {self.where!r} does not match the index: its SHA-256 differs"
            raise BundleError(msg, hint=_AGAIN)


@contextlib.contextmanager
def damage_errors(archive: str) -> Iterator[None]:
    """Translate what gzip raises while it reads an archive; `gzip.BadGzipFile` is an `OSError`."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        msg = f"{archive!r} is damaged: {error}"
        raise BundleError(msg, hint="Copy it again.") from error


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive and read its index; translate what gzip and the disk raise meanwhile.

    Raises:
        BundleError: It is not a bundle, or unpacks to more than a hundred times its size.
    """
    where = str(path)
    try:
        with damage_errors(where), open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
            archive = _with_index(stream, where)
            total = archive.index.size_bytes
            if total > max(_SMALL_BYTES, _MOST_PACKED * size):
                msg = f"{where!r} has {size} bytes and would unpack to {total}"
                raise BundleError(msg, hint="No real bundle compresses this well: do not trust it.")
            yield archive
    except OSError as error:
        msg = f"cannot read {where!r}: {reason_of(error)}"
        raise BundleError(msg, hint="Check the path.") from error


def _with_index(stream: IO[bytes], archive: str) -> Archive:
    entries = read_entries(stream, archive)
    first = next(entries, None)
    if first is None or not first.name.endswith(f"/{INDEX_NAME}"):
        msg = f"{archive!r} is not a bundle: it does not begin with {INDEX_NAME}"
        raise BundleError(msg, hint="Make one with: lora-export bundle")
    if first.size_bytes > INDEX_LIMIT_BYTES:
        msg = f"the index of {archive!r} is larger than {INDEX_LIMIT_BYTES} bytes"
        raise BundleError(msg, hint=_AGAIN)
    raw = stream.read(first.size_bytes)
    index = parse_index(raw, f"{archive}/{first.name}")
    if first.name != f"{index.name}/{INDEX_NAME}":
        msg = f"{archive!r} has its index at {first.name!r}, which calls the bundle {index.name!r}"
        raise BundleError(msg, hint=_AGAIN)
    return Archive(archive, stream, entries, index, raw)
