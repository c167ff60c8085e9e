"""Files that are complete or absent, as the host's modules import them; and pointers of Git LFS.

How files are written, hashed, locked and kept inside a folder is the same on a device:
`lora_export.ondevice.device_files` has it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from lora_export.core.errors import InputError
from lora_export.ondevice.device_files import (
    atomic_write_bytes,
    exclusive_lock,
    is_file_name,
    is_relative_inside,
    is_vacant,
    move_into_place,
    publish_file,
    publish_folder,
    remove_abandoned,
    require_inside,
    resolve_inside,
    sha256_of_file,
    sha256_of_files,
    staging_folder,
    storage_errors,
    sync_folder,
    write_synced,
)
from lora_export.ondevice.file_opening import open_file, reason_of
from lora_export.ondevice.file_writing import (
    cannot_link,
    is_disk_full,
    is_taken,
    open_output,
    require_plain,
)
from lora_export.ondevice.posix_modules import posix_module

__all__ = [
    "atomic_write_bytes",
    "cannot_link",
    "copy_file",
    "exclusive_lock",
    "is_disk_full",
    "is_file_name",
    "is_relative_inside",
    "is_taken",
    "is_vacant",
    "move_into_place",
    "open_output",
    "publish_file",
    "publish_folder",
    "refuse_lfs_pointer",
    "remove_abandoned",
    "require_inside",
    "require_plain",
    "resolve_inside",
    "sha256_of_file",
    "sha256_of_files",
    "staging_folder",
    "storage_errors",
    "sync_folder",
    "user_path",
    "write_synced",
]

_COPIED_BYTES: Final = 1 << 22
_FICLONE: Final = 0x40049409
_LFS_POINTER: Final = b"version https://git-lfs.github.com/"


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a file that only names a file of Git LFS, as a clone without Git LFS leaves it.

    Raises:
        InputError: It is such a file.
    """
    try:
        with open_file(path) as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError:
        return  # its reader says why
    if start == _LFS_POINTER:
        msg = f"{str(path)!r} is a pointer of Git LFS, not the file itself"
        raise InputError(
            msg, hint="Fetch the file: git lfs pull, or download the repository from the hub."
        )


def user_path(text: str | Path) -> Path:
    """Return a path as a user writes it: ``~`` is the home folder.

    `pathlib.Path.expanduser` raises `RuntimeError` for a user that does not exist (``~nobody``);
    here such a path stays as it is, and nothing is found there.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111  (see above)


def copy_file(source: Path, target: Path, *, synced: bool = False) -> None:
    """Copy what a regular file holds into a new file of a private folder.

    Where the file system can (Btrfs, XFS), the copy shares its blocks with the
    source until one of the two is written to, and takes no room.

    Args:
        source: The file.
        target: The copy.
        synced: Whether the copy is on the disk when this returns.

    Raises:
        InputError: `source` cannot be opened, or is not a regular file.
        StorageError: The disk refuses.
    """
    try:
        stream = open_file(source)
    except OSError as error:
        msg = f"cannot read {str(source)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the path and its permissions.") from error
    with stream, storage_errors(str(target)), open_output(target) as copy:
        if not _clone(stream.fileno(), copy.fileno()):
            shutil.copyfileobj(stream, copy, _COPIED_BYTES)
        if synced:
            copy.flush()
            os.fsync(copy.fileno())


def _clone(source: int, target: int) -> bool:
    """Let a file share the blocks of another (``ioctl_ficlone(2)``); False where that fails."""
    fcntl = posix_module("fcntl")
    if fcntl is None or not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
