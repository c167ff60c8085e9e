"""Files that take their places together: they wait in a folder until the manifest names them.

A change of several files is made in four steps, under the directory's lock:

1. the new files, by the paths that they will have, become the folder ``.lora_export.next``;
2. the manifest that names them is written: from here on the change is made;
3. each file moves to its place, weights before the graphs that read them;
4. what the manifest does not name any more is removed, and at last the folder.

Who comes after a process that was killed looks at what waits: a file that has the hash in the
manifest belongs to a change that was made, and moves (3); any other was to be, and is removed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import (
    resolve_inside,
    sha256_of_file,
    storage_errors,
    sync_folder,
    write_synced,
)
from lora_export.core.json_file import read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

__all__ = ["WAITING", "finish", "is_committed", "stage_change"]

WAITING: Final = ".lora_export.next"
_GONE: Final = ".gone.json"
_LIMIT_BYTES: Final = 1 << 24


def stage_change(root: Path, staging: Path, gone: Collection[str]) -> None:
    """Turn `staging`, a private folder in `root`, into the one whose files wait (1).

    Args:
        root: The directory, whose lock the caller holds; nothing waits in it.
        staging: The new files, synced, by the paths that they will have.
        gone: Files that are removed at the end, unless the manifest names them then.

    Raises:
        StorageError: The disk refuses.
    """
    with storage_errors(str(root)):
        write_synced(staging / _GONE, json.dumps(sorted(gone)).encode())
        for folder in (*(each for each in staging.rglob("*") if each.is_dir()), staging):
            sync_folder(folder)
        staging.rename(root / WAITING)
        sync_folder(root)


def is_committed(root: Path, files: Mapping[str, str]) -> bool:
    """Whether a change was made (2) and not finished: something waits that `files` names.

    Args:
        root: The directory.
        files: The SHA-256 of each file, as its manifest says.
    """
    with contextlib.suppress(FileNotFoundError):  # another process finishes it meanwhile
        return any(_is_named(root, file, files) for file in _waiting(root))
    return True


def finish(root: Path, files: Mapping[str, str]) -> None:
    """Finish a change that was made, and remove what one that was not has left (3, 4).

    Args:
        root: The directory, whose lock the caller holds.
        files: The SHA-256 of each file, as its manifest says.

    Raises:
        ExportDirectoryError: A path leads outside `root`.
        StorageError: The disk refuses.
    """
    folder = resolve_inside(root, WAITING)
    if not folder.is_dir():
        return
    with storage_errors(str(root)):
        moved = [file for file in _waiting(root) if _is_named(root, file, files)]
        for file in sorted(moved, key=lambda each: (-each.count("/"), each)):
            place = resolve_inside(root, file)
            place.parent.mkdir(parents=True, exist_ok=True)
            resolve_inside(root, f"{WAITING}/{file}").replace(place)
        for place in {resolve_inside(root, file).parent for file in moved}:
            sync_folder(place)
        for file in set(_gone(folder)) - set(files):
            place = resolve_inside(root, file)
            place.unlink(missing_ok=True)
            _remove_empty(place.parent, root.resolve())
        shutil.rmtree(folder)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove folders that are left empty, except `root` and those directly in it."""
    with contextlib.suppress(OSError):
        while root in folder.parent.parents:
            folder.rmdir()
            folder = folder.parent


def _waiting(root: Path) -> Iterator[str]:
    """Yield the paths of the files that wait, as they will be."""
    folder = resolve_inside(root, WAITING)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _GONE:
            yield path.relative_to(folder).as_posix()


def _is_named(root: Path, file: str, files: Mapping[str, str]) -> bool:
    waiting = resolve_inside(root, f"{WAITING}/{file}")
    return file in files and sha256_of_file(waiting) == files[file]


def _gone(folder: Path) -> list[str]:
    path, hint = folder / _GONE, f"Remove the folder {str(folder)!r}."
    if not path.is_file():
        return []  # removed already, with the rest of the folder to come
    found = read_json(path, _LIMIT_BYTES, ExportDirectoryError, absent=hint, damaged=hint)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        msg = f"{str(path)!r} is no list of files"
        raise ExportDirectoryError(msg, hint=hint)
    return found
