"""Advisory locks of files and folders, which end with the process that holds them.

Windows has no such locks of folders. There a staging folder is not locked, and what a killed
process left behind stays: nobody can tell it from one in use. Nobody has tried it there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lora_export.ondevice.file_opening import open_flags
from lora_export.ondevice.posix_modules import posix_module

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["close_lock", "lock", "open_folder_lock", "try_lock"]

_fcntl: Any = posix_module("fcntl")


def open_folder_lock(folder: Path) -> int | None:
    """Return a descriptor of a folder, to be locked; None where folders cannot be.

    Raises:
        OSError: It cannot be opened, or is a link or no folder.
    """
    if _fcntl is None:
        return None
    return os.open(folder, open_flags("O_RDONLY", "O_DIRECTORY", "O_CLOEXEC", "O_NOFOLLOW"))


def lock(descriptor: int | None) -> None:
    """Wait for an exclusive lock; without locks, go on.

    Raises:
        OSError: The file system refuses.
    """
    if _fcntl is not None and descriptor is not None:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX)


def try_lock(descriptor: int | None) -> bool:
    """Take an exclusive lock; return False where that cannot be, as there are no locks.

    Raises:
        OSError: Another process holds it.
    """
    if _fcntl is None or descriptor is None:
        return False
    _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    return True


def close_lock(descriptor: int | None) -> None:
    """Close a descriptor, which gives its lock back."""
    if descriptor is not None:
        os.close(descriptor)
