"""Files that are complete or absent: atomic writes, staging folders, locks, hashes, safe paths.

A file is written under a temporary name, synced, then renamed. What a killed process leaves behind
sits in a staging folder whose lock has died with it, and is removed by the next process that looks.
The standard library alone: host and device share these functions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import DeviceError, ExportDirectoryError, StorageError
from lora_export.ondevice.file_opening import (
    TABLE_LIMIT_BYTES,
    open_file,
    open_lock,
    read_file,
    real_path,
    reason_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "atomic_write_bytes",
    "exclusive_lock",
    "is_file_name",
    "is_relative_inside",
    "is_vacant",
    "move_into_place",
    "publish_folder",
    "read_errors",
    "read_json",
    "remove_abandoned",
    "resolve_inside",
    "sha256_of_file",
    "sha256_of_files",
    "staging_folder",
    "storage_errors",
    "sync_folder",
    "write_synced",
]

_READ_BLOCK_BYTES: Final = 1 << 22
_STAGING_PREFIX: Final = ".lora-export-"
_STAGING_NAME: Final = re.compile(re.escape(_STAGING_PREFIX) + r".+-[a-z0-9_]{8}")


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate every `OSError` raised while writing `what` into a `StorageError`."""
    try:
        yield
    except OSError as error:
        msg = f"cannot write {what}: {reason_of(error)}"
        raise StorageError(
            msg, hint="Free some space or choose another output directory; nothing was left behind."
        ) from error


@contextlib.contextmanager
def read_errors(what: str) -> Iterator[None]:
    """Translate an `OSError` raised while reading `what` on a device into a `DeviceError`."""
    try:
        yield
    except OSError as error:
        msg = f"cannot read {what}: {reason_of(error)}"
        raise DeviceError(msg, kind="input") from error


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(staged: Path, target: Path) -> None:
    """Give a finished file or folder its name, durably.

    A file takes the place of one that is there; a folder that of an empty one.

    Raises:
        OSError: There is something else (ENOTEMPTY, EEXIST), or the disk refuses.
    """
    if staged.is_dir() and target.is_dir():
        target.rmdir()
    staged.replace(target)
    sync_folder(target.parent)


def publish_folder(
    staging: Path, output: Path, *, hint: str = "Choose another output; nothing was changed."
) -> None:
    """Give a finished staging folder the name `output`, whole and durably.

    Args:
        staging: The folder, in the one that `output` is to be in.
        output: Where there is nothing, or an empty folder.
        hint: What to do where there is something by now.

    Raises:
        ExportDirectoryError: Another process has written `output` meanwhile.
        StorageError: The disk refuses.
    """
    try:
        sync_folder(staging)
        move_into_place(staging, output)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            msg = f"another process has written {str(output)!r} meanwhile"
            raise ExportDirectoryError(msg, hint=hint) from error
        with storage_errors(str(output)):
            raise


def is_vacant(folder: Path) -> bool:
    """Whether a folder may be put there: there is nothing, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> str:
    """Write `data` to `path`, complete or not at all; return its SHA-256 in hexadecimal."""
    with storage_errors(str(path)), staging_folder(path.parent, "file") as staging:
        digest = write_synced(staging / path.name, data)
        move_into_place(staging / path.name, path)
    return digest


def write_synced(path: Path, data: bytes | memoryview) -> str:
    """Write a file into a private folder, synced; return its SHA-256 in hexadecimal."""
    with storage_errors(str(path)), path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(data).hexdigest()


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return one SHA-256 for several files in their order, that of their hashes.

    Raises:
        OSError: One cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_of_file(path)))
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in blocks.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_READ_BLOCK_BYTES))
    with open_file(path) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, created if absent, until the block or the process ends.

    Raises:
        OSError: The file cannot be opened, or is a symbolic link or no regular file.
    """
    descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging_folder(parent: Path, stem: str = "staging") -> Iterator[Path]:
    """Yield a private folder in `parent`, removed at the end unless it was renamed away.

    The folder is locked while this process lives. Folders that dead processes left in `parent` are
    removed first: their lock can be taken.
    """
    created = [each for each in (parent, *parent.parents) if not each.exists()]
    try:
        with storage_errors(str(parent)):
            parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(parent)
            folder, descriptor = _locked_folder(parent, stem)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for each in created:  # gone again unless something was moved into them
                each.rmdir()


def _locked_folder(parent: Path, stem: str) -> tuple[Path, int]:
    """Make a folder and lock it; again if another process swept it away in between."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_STAGING_PREFIX}{stem}-", dir=parent))
        with contextlib.suppress(FileNotFoundError):
            folder.chmod(0o755)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Remove the staging folders in `parent` whose process is gone."""
    for folder in parent.glob(f"{_STAGING_PREFIX}*-*"):
        if not _STAGING_NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue  # somebody else's
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def is_relative_inside(path: str) -> bool:
    """Whether a path, whatever it is relative to, leads nowhere above that; links are not seen.

    >>> [is_relative_inside(path) for path in ("weights/a.bin", "../a.bin", "/a.bin")]
    [True, False, False]
    """
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and "\0" not in path


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file in a folder, without a path.

    >>> [is_file_name(name) for name in ("a.bin", "x/a.bin", "..", "")]
    [True, False, False, False]
    """
    return name not in {"", ".", ".."} and PurePosixPath(name).name == name


def resolve_inside(root: Path, relative: str) -> Path:
    """Return ``root / relative``, refusing every path that leads outside `root`.

    Raises:
        ExportDirectoryError: `relative` is absolute, climbs with ``..``, or passes a symbolic link
            that leaves `root`.
    """
    inside = is_relative_inside(relative)
    if inside:
        target = root / PurePosixPath(relative)
        inside = real_path(target).is_relative_to(real_path(root))
        if inside:
            return target
    msg = f"path {relative!r} leads outside {str(root)!r}"
    raise ExportDirectoryError(
        msg, hint="The file that names it is damaged or hostile; copy or export it again."
    )


def read_json(path: Path, what: str) -> Mapping[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        DeviceError: It is missing, too large, or holds something else.
    """
    try:
        with read_errors(f"{what} {str(path)!r}"):
            table = json.loads(read_file(path, TABLE_LIMIT_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{what} {str(path)!r} is not readable JSON: {error}"
        raise DeviceError(msg, kind="input") from error
    if not isinstance(table, dict):
        msg = f"{what} {str(path)!r} holds no table"
        raise DeviceError(msg, kind="input")
    return table
