"""Locks among processes: shared by most work, exclusive where a task has to run alone.

    beside    door, room shared, door open again    …    room left
    alone     door, room exclusive                  …    both left

Who waits to be alone holds the door, so that nobody enters behind its back and it is not put off
for ever. The locks are the kernel's (flock): a process that dies leaves them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.file_opening import open_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Turns"]

_NAMES: Final = ("door", "room")


class Turns:
    """One process's place among those that name the same folder.

    Args:
        folder: Holds the two files that are locked; created if absent.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._door, self._room = (open_lock(folder / name) for name in _NAMES)

    @contextlib.contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Wait for a turn, and hold it until the block ends."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            if not alone:
                fcntl.flock(self._door, fcntl.LOCK_UN)
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._door, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave, and take the files away; whoever has opened them goes on with them."""
        for name, descriptor in zip(_NAMES, (self._door, self._room), strict=True):
            os.close(descriptor)
            (self._folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
