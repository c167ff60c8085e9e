"""Objects as files below a directory, which several machines may share."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import InputError, StorageError
from lora_export.core.files import (
    atomic_write_bytes,
    copy_file,
    move_into_place,
    resolve_inside,
    staging_folder,
    storage_errors,
)
from lora_export.ondevice.file_opening import read_file, reason_of, require_file

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["DirectoryObjects"]

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_HIDDEN: Final = "."


class DirectoryObjects:
    """See `lora_export.fleet.store.objects.Objects`.

    Args:
        root: The directory; made when something is stored.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def place(self) -> str:
        """The directory."""
        return str(self._root)

    def upload(self, source: Path, name: str) -> None:
        """Store a file under a name, in place of what was there."""
        target = resolve_inside(self._root, name)
        with storage_errors(str(target)), staging_folder(target.parent, "object") as staging:
            try:
                copy_file(source, staging / target.name, synced=True)
            except StorageError:
                raise
            except InputError as error:
                raise StorageError(error.message, hint=error.hint) from error
            move_into_place(staging / target.name, target)

    def write(self, name: str, data: bytes) -> None:
        """Store bytes under a name, in place of what was there."""
        atomic_write_bytes(resolve_inside(self._root, name), data)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Return an object of at most so many bytes; None where there is none."""
        path = resolve_inside(self._root, name)
        try:
            return read_file(path, limit_bytes)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise _refused("read", path, error) from error

    def download(self, name: str, target: Path) -> bool:
        """Copy an object to a new file; return False where there is none."""
        path = resolve_inside(self._root, name)
        if self.size(name) is None:
            return False
        try:
            copy_file(path, target)
        except StorageError:
            raise
        except InputError as error:
            raise StorageError(error.message, hint=error.hint) from error
        return True

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None where there is none."""
        path = resolve_inside(self._root, name)
        try:
            return require_file(path).st_size
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise _refused("read", path, error) from error

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each object whose name starts with ``prefix/``."""
        found: dict[str, int] = {}
        waiting = [resolve_inside(self._root, prefix)]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(_HIDDEN):
                            continue  # staging folders
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(folder / entry.name)
                        elif entry.is_file(follow_symlinks=False):
                            name = (folder / entry.name).relative_to(self._root).as_posix()
                            found[name] = entry.stat(follow_symlinks=False).st_size
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise _refused("list", folder, error) from error
        return dict(sorted(found.items()))

    def remove(self, names: Collection[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        for name in names:
            path = resolve_inside(self._root, name)
            with storage_errors(str(path)):
                path.unlink(missing_ok=True)


def _refused(what: str, path: Path, error: OSError) -> StorageError:
    msg = f"cannot {what} {str(path)!r} in the store: {reason_of(error)}"
    return StorageError(msg, hint="Check the store's permissions and disk, then run again.")
