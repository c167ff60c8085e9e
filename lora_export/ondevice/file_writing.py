"""Write files and folders that are complete or absent, and never through a symbolic link.

What is written is new, or takes the place of a regular file: a link, a pipe, a socket or a device
at the place of an output is left as it is. What the system refuses becomes a `StorageError` here
and nowhere else. The standard library alone: host and device share these functions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from typing import IO, TYPE_CHECKING, Final

from lora_export.ondevice.device_errors import ExportDirectoryError, StorageError
from lora_export.ondevice.file_opening import open_flags, open_regular, reason_of, require_kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "cannot_link",
    "is_disk_full",
    "is_taken",
    "is_vacant",
    "move_into_place",
    "open_output",
    "publish_file",
    "publish_folder",
    "require_plain",
    "storage_errors",
    "sync_folder",
    "write_synced",
]

_HINTS: Final = {
    errno.ENOSPC: "Free some space, or choose another output.",
    errno.EDQUOT: "Free some space, for the quota is used up; or choose another output.",
    errno.EFBIG: "A file may not become so large here; check the file system and ulimit -f.",
    errno.EROFS: "The file system can only be read: choose another place, or mount it writable.",
    errno.EACCES: "Check the permissions, or choose another output.",
    errno.EPERM: "Check the permissions, or choose another output.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOENT: "A folder of this path was removed meanwhile; run again.",
    errno.EIO: "The disk is faulty or was disconnected; choose another output.",
}
"""The hint for each error number of the system."""

_ANY_HINT: Final = "Choose another output."
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_LINK_REFUSALS: Final = frozenset(
    {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
)
_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
"""The error numbers of a rename onto something that exists."""


def cannot_link(error: OSError) -> bool:
    """Whether `os.link` failed because the file system cannot make such a link."""
    return error.errno in _LINK_REFUSALS


def is_taken(error: OSError) -> bool:
    """Whether a rename failed because something exists at the target."""
    return error.errno in _TAKEN


def is_disk_full(error: OSError) -> bool:
    """Whether a system call failed for want of space."""
    return error.errno in _FULL


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate every `OSError` raised while writing `what` into a `StorageError`."""
    try:
        yield
    except OSError as error:
        msg = f"cannot write {what}: {reason_of(error)}"
        hint = _HINTS.get(error.errno or 0, _ANY_HINT)
        raise StorageError(msg, hint=hint) from error


def require_plain(path: Path) -> None:
    """Require that a file may be written at `path`: there is nothing, or a regular file.

    Raises:
        OSError: There is something else, such as a symbolic link or a device.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link, not a file", str(path))
    require_kind(status.st_mode, path)


def open_output(path: Path, *, append: bool = False, mode: int = 0o666) -> IO[bytes]:
    """Open a new or regular file for writing in binary, emptied; no symbolic link is followed.

    Args:
        path: The file.
        append: Whether what it holds is kept.
        mode: The permissions of a new file, before the umask.

    Raises:
        OSError: It cannot be opened, or is a link or no regular file.
    """
    require_plain(path)  # says what is there; the flags hold where it is exchanged meanwhile
    flags = open_flags("O_WRONLY", "O_CREAT", "O_NOFOLLOW", *(["O_APPEND"] if append else []))
    stream = os.fdopen(open_regular(path, flags, mode), "ab" if append else "wb")
    if not append:
        stream.truncate(0)
    return stream


def write_synced(path: Path, data: bytes | memoryview) -> str:
    """Write a file into a private folder, synced; return its SHA-256 in hexadecimal.

    Raises:
        StorageError: The disk refuses.
    """
    with storage_errors(str(path)), open_output(path) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(data).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where its file system can; Windows opens no folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, open_flags("O_RDONLY", "O_DIRECTORY", "O_CLOEXEC"))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    finally:
        os.close(descriptor)


def move_into_place(staged: Path, target: Path) -> None:
    """Give a finished file or folder its name, durably.

    A file takes the place of a regular file that is there; a folder that of an empty one.

    Raises:
        OSError: There is something else (see `require_plain`; ENOTEMPTY, EEXIST, ENOTDIR), or the
            disk refuses.
    """
    if not staged.is_dir():
        require_plain(target)
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
    with _written_meanwhile(output, hint):
        sync_folder(staging)
        move_into_place(staging, output)


def publish_file(
    staged: Path, output: Path, *, hint: str = "Choose another output; nothing was changed."
) -> None:
    """Give a finished file the name `output`, where there is nothing yet, durably.

    Args:
        staged: The file, in a private folder beside `output`; it may be there afterwards.
        output: Where there is nothing.
        hint: What to do where there is something by now.

    Raises:
        ExportDirectoryError: Another process has written `output` meanwhile.
        StorageError: The disk refuses.
    """
    with _written_meanwhile(output, hint):
        try:
            os.link(staged, output, follow_symlinks=False)  # fails where a rename would replace
        except OSError as error:
            if not cannot_link(error):
                raise
            if os.path.lexists(output):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), output) from error
            staged.replace(output)
        sync_folder(output.parent)


@contextlib.contextmanager
def _written_meanwhile(output: Path, hint: str) -> Iterator[None]:
    with storage_errors(str(output)):
        try:
            yield
        except OSError as error:
            if not is_taken(error) or not os.path.lexists(output):
                raise
            msg = f"another process has written {str(output)!r} meanwhile"
            raise ExportDirectoryError(msg, hint=hint) from error


def is_vacant(folder: Path) -> bool:
    """Whether a folder may be put there: there is nothing, or an empty folder that is no link.

    Raises:
        StorageError: The path cannot be looked at: not permitted, too long, below a file.
    """
    with storage_errors(str(folder)):
        try:
            status = folder.lstat()
        except FileNotFoundError:
            return True
        return stat.S_ISDIR(status.st_mode) and not any(folder.iterdir())
