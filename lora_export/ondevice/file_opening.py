"""Open and read files that others have written: regular files of bounded size, nothing else.

A path that a user names may be a symbolic link (a snapshot of the Hugging Face hub consists of
them). What it ends at has to be a regular file: reading a pipe would wait for a writer for ever,
and a device such as ``/dev/zero`` has no end. Everything here raises `OSError` with a text that
says what was found, so that a reader translates one kind of error. The standard library alone:
host and device share these functions.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from io import BufferedReader

__all__ = [
    "TABLE_LIMIT_BYTES",
    "is_regular_file",
    "open_descriptor",
    "open_file",
    "open_flags",
    "open_lock",
    "open_regular",
    "read_file",
    "real_path",
    "reason_of",
    "require_file",
    "require_kind",
]

TABLE_LIMIT_BYTES: Final = 1 << 26
"""The largest table of settings that is read, JSON or YAML, in bytes."""

_KINDS: Final = (
    (stat.S_ISDIR, errno.EISDIR, "it is a folder, not a file"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a named pipe, not a file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, not a file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, not a file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, not a file"),
)


def reason_of(error: OSError) -> str:
    """Return why a system call failed, as text for a message."""
    return error.strerror or str(error) or type(error).__name__


def real_path(path: Path) -> Path:
    """Return the absolute path without symbolic links, as far as they can be followed.

    `pathlib.Path.resolve` raises `RuntimeError` at a link that leads to itself. Here such a link
    stays as it is, and opening it fails with ``ELOOP``.
    """
    return Path(os.path.realpath(path))


def require_file(path: Path) -> os.stat_result:
    """Return the status of a regular file; symbolic links are followed, nothing is opened.

    Raises:
        OSError: It is absent or not permitted, or a folder, a pipe, a socket or a device.
    """
    try:
        status = path.stat()
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, f"{str(path)!r} can be no name of a file") from error
    require_kind(status.st_mode, path)
    return status


def is_regular_file(path: Path) -> bool:
    """Whether there is a regular file, links followed; False too where the name cannot be one."""
    try:
        require_file(path)
    except OSError:
        return False
    return True


def open_descriptor(path: Path) -> int:
    """Return a descriptor of a regular file, open for reading.

    Raises:
        OSError: It cannot be opened, or is not a regular file (see `require_file`).
    """
    require_file(path)
    return open_regular(path, os.O_RDONLY)


def open_regular(path: Path, flags: int, mode: int = 0o666) -> int:
    """Return a descriptor of a regular file, opened with `flags`; a pipe is not waited for.

    The file may be exchanged for something else after it was looked at: its descriptor tells.

    Args:
        path: The file.
        flags: Those of `os.open`; ``O_CLOEXEC``, ``O_NONBLOCK``, ``O_NOCTTY`` and Windows's
            ``O_BINARY`` are added.
        mode: The permissions of a file that is made, before the umask.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    flags |= open_flags("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY")
    descriptor = os.open(path, flags, mode)
    try:
        require_kind(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_flags(*names: str) -> int:
    """Return flags of `os.open` together; those that the system does not have are left out.

    Windows has no ``O_NOFOLLOW`` and no ``O_NONBLOCK``, and no other system has ``O_BINARY``.
    """
    found = 0
    for name in names:
        found |= getattr(os, name, 0)
    return found


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading in binary.

    Raises:
        OSError: It cannot be opened, or is not a regular file (see `require_file`).
    """
    return open(open_descriptor(path), "rb")


def read_file(path: Path, limit_bytes: int) -> bytes:
    """Return what a regular file holds.

    Args:
        path: The file.
        limit_bytes: How large it may be; a larger one is not read.

    Raises:
        OSError: It cannot be read, is not a regular file, is larger (``EFBIG``), or grew while it
            was read (``EBUSY``).
    """
    with open_file(path) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        if size_bytes > limit_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {limit_bytes} bytes", str(path))
        data = stream.read(size_bytes)
        if stream.read(1):
            raise OSError(errno.EBUSY, "it grew while it was read", str(path))
    return data


def open_lock(path: Path) -> int:
    """Return a descriptor of a file to lock, created if absent; a symbolic link is not followed.

    Raises:
        OSError: It cannot be opened or made, or is a link or no regular file.
    """
    try:
        return open_regular(path, open_flags("O_RDWR", "O_CREAT", "O_NOFOLLOW"))
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link, not a lock file"
            raise OSError(errno.ELOOP, reason, str(path)) from error
        raise


def require_kind(mode: int, path: Path) -> None:
    """Require of the mode in a file's status that it is a regular file.

    Raises:
        OSError: It is a folder, a pipe, a socket or a device.
    """
    for is_kind, number, what in _KINDS:
        if is_kind(mode):
            raise OSError(number, what, str(path))
