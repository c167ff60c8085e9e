"""Bundles as archives: packed with the same bytes every time, verified, unpacked.

    NAME/bundle.json        the index, first: what follows is known before it is read
    NAME/…                  the files, sorted by name

A bundle may be compressed with gzip (``.tar.gz``). Before a file is read, the index has said its
name and size: an archive that holds anything else, in another size or twice is refused where it
does, and one that is a hundred times larger than its file before anything is unpacked.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.bundle.archive import damage_errors, open_archive
from lora_export.bundle.tar_file import end_of_archive, header_of, padding_of
from lora_export.core.errors import BundleError, StorageError, UsageError
from lora_export.core.files import (
    is_vacant,
    move_into_place,
    open_output,
    publish_file,
    publish_folder,
    require_plain,
    staging_folder,
    storage_errors,
    write_synced,
)
from lora_export.core.progress import Progress, Silent
from lora_export.ondevice.bundle.bundle_index import (
    INDEX_NAME,
    Index,
    Member,
    encode_index,
    parse_index,
    read_index,
    require_files,
)
from lora_export.ondevice.device_files import check_length
from lora_export.ondevice.file_opening import open_file, reason_of, require_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.ondevice.bundle.index_values import Contents

__all__ = [
    "ENTRY_POINT",
    "Packed",
    "pack",
    "require_replaceable",
    "require_vacant",
    "unpack",
    "verify_bundle",
]

_BLOCK_BYTES: Final = 1 << 20
_GZIP_SUFFIXES: Final = (".gz", ".tgz")
_LEVEL: Final = 6
ENTRY_POINT: Final = "run.py"
"""The one file of a bundle that is run."""

_FILE_MODE: Final = 0o644
_PROGRAM_MODE: Final = 0o755
_CODE: Final = frozenset({".py", ".pyc", ".so"})
_AGAIN: Final = "Copy it again, or pack it again: lora-export bundle."


@dataclass(frozen=True)
class Packed:
    """A bundle that was written.

    Attributes:
        path: The archive.
        name: The folder in it.
        sha256: The SHA-256 of its index, which names that of every file.
        size_bytes: What the archive takes.
        files: How many files it holds.
    """

    path: Path
    name: str
    sha256: str
    size_bytes: int
    files: int


@dataclass(frozen=True)
class _Source:
    """The source of a file in a bundle: a file with its SHA-256, or bytes."""

    member: Member
    path: Path | None = None
    data: bytes = field(default=b"", repr=False)


def pack(
    path: Path,
    name: str,
    tool: str,
    contents: Contents,
    *,
    files: Mapping[str, tuple[Path, str]],
    made: Mapping[str, bytes],
    replace: bool = True,
    progress: Progress | None = None,
) -> Packed:
    """Write a bundle, complete or not at all; the same inputs give the same bytes.

    Args:
        path: The archive; compressed where it ends in ``.gz`` or ``.tgz``.
        name: The bundle's name.
        tool: What packs it.
        contents: What the index says beside the files.
        files: Files by their path in the bundle, each with the SHA-256 that it has to have.
        made: Files that are made here.
        replace: Whether a bundle at `path` is replaced; nothing else is.
        progress: Told about bytes.

    Raises:
        UsageError: `path` is a folder.
        BundleError: A file is not what it should be, a name is not allowed, or there is something
            at `path` that is not replaced.
        ExportDirectoryError: Another process has written `path` meanwhile.
        StorageError: The disk refuses; nothing is left behind.
    """
    tell = progress or Silent()
    if path.is_dir():
        msg = f"{str(path)!r} is a folder"
        raise UsageError(msg, hint=f"Name a file: -o {path / name}.tar")
    (require_replaceable if replace else require_vacant)(path)
    sources = _sources(files, made)
    rows = {
        each: {"sha256": source.member.sha256, "bytes": source.member.size_bytes}
        for each, source in sources.items()
    }
    raw = encode_index({"name": name, "tool": tool, "files": rows, **contents.to_json()})
    index = parse_index(raw, INDEX_NAME)  # what is written can be read
    total = index.size_bytes + len(raw)
    tell.start(f"packing {path.name}", total)
    with storage_errors(str(path)), staging_folder(path.parent, "bundle") as staging:
        partial = staging / path.name
        with open_output(partial) as stream:
            blocks = _archive(name, raw, sources, tell)
            if path.name.endswith(_GZIP_SUFFIXES):  # neither a name nor a time in the header
                with gzip.GzipFile("", "wb", _LEVEL, stream, mtime=0) as packed:
                    packed.writelines(blocks)
            else:
                stream.writelines(blocks)
            stream.flush()
            os.fsync(stream.fileno())
        size = partial.stat().st_size
        if replace:
            move_into_place(partial, path)
        else:
            publish_file(partial, path)
    return Packed(path, name, index.digest, size, len(sources) + 1)


def require_vacant(path: Path) -> None:
    """Require that there is nothing where a bundle goes.

    Raises:
        BundleError: Something is there.
    """
    if os.path.lexists(path):
        msg = f"{str(path)!r} exists already"
        raise BundleError(
            msg, hint="Choose another -o, or pass --replace to replace it; nothing was changed."
        )


def require_replaceable(path: Path) -> None:
    """Require that what is where a bundle goes, if anything, is one, and a file of its own.

    Raises:
        BundleError: It is a file of another kind, a link or a device.
        StorageError: The path cannot be looked at.
    """
    with storage_errors(str(path)):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
    if stat.S_ISDIR(status.st_mode):
        return  # `pack` says so
    try:
        require_plain(path)
        with open_archive(path):
            pass
    except (OSError, BundleError) as error:
        reason = f": {reason_of(error)}" if isinstance(error, OSError) else ""
        msg = f"{str(path)!r} exists and is not a bundle{reason}"
        hint = "Choose another name for the bundle (-o, --bundle), or remove that."
        raise BundleError(msg, hint=f"{hint} Nothing was changed.") from error


def _sources(
    files: Mapping[str, tuple[Path, str]], made: Mapping[str, bytes]
) -> dict[str, _Source]:
    found = {}
    for name, (path, digest) in files.items():
        try:
            size = require_file(path).st_size
        except OSError as error:
            raise _unreadable(path, error) from error
        found[name] = _Source(Member(digest, size), path)
    for name, data in made.items():
        found[name] = _Source(Member(hashlib.sha256(data).hexdigest(), len(data)), data=data)
    return found


def _unreadable(path: Path, error: OSError) -> BundleError:
    msg = f"cannot read {str(path)!r}, a file of the bundle: {reason_of(error)}"
    return BundleError(msg, hint="Export again.")


def _archive(
    folder: str, raw: bytes, sources: Mapping[str, _Source], tell: Progress
) -> Iterator[bytes]:
    """Yield an archive piece by piece: the index, then every file by its name."""
    written = 0
    index = _Source(Member("", len(raw)), data=raw)
    for name, source in [(INDEX_NAME, index), *sorted(sources.items())]:
        size = source.member.size_bytes
        mode = _PROGRAM_MODE if name == ENTRY_POINT else _FILE_MODE
        header, padding = header_of(folder, name, size, mode), padding_of(size)
        yield header
        yield from [raw] if name == INDEX_NAME else _blocks(name, source, tell)
        yield padding
        written += len(header) + size + len(padding)
    yield end_of_archive(written)


def _blocks(name: str, source: _Source, tell: Progress) -> Iterator[bytes]:
    """Yield a file's bytes; at its end, require that they are those of the index."""
    digest, size = hashlib.sha256(), 0
    for block in [source.data] if source.path is None else _read(source.path):
        digest.update(block)
        size += len(block)
        tell.advance(len(block))
        yield block
    if (size, digest.hexdigest()) != (source.member.size_bytes, source.member.sha256):
        msg = f"{name!r} does not match the manifest: its SHA-256 differs"
        raise BundleError(msg, hint="Export again, or find what changes it.")


def _read(path: Path) -> Iterator[bytes]:
    try:
        with open_file(path) as stream:
            check_length(path, stream)
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise _unreadable(path, error) from error


def verify_bundle(path: Path, progress: Progress | None = None) -> Index:
    """Require that a bundle, an archive or an unpacked one, is what was packed; return its index.

    Nothing is written and nothing of it is run.

    Raises:
        BundleError: It is missing, damaged, was edited, or holds what no bundle holds.
        UnsupportedError: It was packed by a newer version.
    """
    tell = progress or Silent()
    if path.is_dir():
        index = read_index(path)
        tell.start(f"hashing {path}", index.size_bytes)
        require_files(path, index, tell.advance)
        _require_no_more_code(path, index)
        return index
    with open_archive(path) as archive:
        tell.start(f"hashing {path.name}", archive.index.size_bytes)
        for _, blocks in archive.files():
            for block in blocks:
                tell.advance(len(block))
    return archive.index


def _require_no_more_code(root: Path, index: Index) -> None:
    """Require that nothing lies in an unpacked bundle that its entry point could import besides.

    Python looks for modules beside the program first: a ``numpy.py`` there would be run. Engines
    and reports, which a run leaves, are no code.

    Raises:
        BundleError: There is code, or a link, that the index does not name.
    """
    for folder, folders, files in os.walk(root):
        for each in (*folders, *files):
            path = Path(folder, each)
            name = path.relative_to(root).as_posix()
            code = each in files and path.suffix in _CODE
            if name not in index.files and (code or path.is_symlink()):
                what = "a link" if path.is_symlink() else "code"
                msg = f"{name!r} of {str(root)!r} is {what} that its index does not name"
                raise BundleError(msg, hint="Remove it, or unpack the bundle again.")


def unpack(path: Path, output: Path, progress: Progress | None = None) -> Index:
    """Unpack a bundle into the new folder `output`, complete or not at all; return its index.

    Raises:
        BundleError: See `verify_bundle`; or `output` is not empty.
        StorageError: The disk has too little room, or refuses.
    """
    tell = progress or Silent()
    if not is_vacant(output):
        msg = f"{str(output)!r} exists and is not an empty folder"
        raise BundleError(msg, hint="Choose another --out; nothing was changed.")
    with (
        open_archive(path) as archive,
        storage_errors(str(output)),
        staging_folder(output.parent, output.name) as staging,
        damage_errors(str(path)),  # before they are taken for errors of the disk
    ):
        _require_room(staging, archive.index)
        tell.start(f"unpacking {path.name}", archive.index.size_bytes)
        for name, blocks in archive.files():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):  # another name, which differs in case only
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            with open_output(target, mode=0o777 if name == ENTRY_POINT else 0o666) as stream:
                for block in blocks:
                    stream.write(block)
                    tell.advance(len(block))
        write_synced(staging / INDEX_NAME, archive.raw)
        publish_folder(staging, output)
    return archive.index


def _require_room(folder: Path, index: Index) -> None:
    free = shutil.disk_usage(folder).free
    if index.size_bytes > free:
        msg = f"the bundle unpacks to {index.size_bytes} bytes, {free} are free"
        raise StorageError(msg, hint="Free some space, or choose another --out.")
