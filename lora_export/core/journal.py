"""Files that take their places together: they wait in a folder until the manifest names them.

A change of several files is made in four steps, under the directory's lock:

1. the new files, by the paths that they will have, become the folder ``.lora_export.next``, with
   ``.replaced.json``: the SHA-256 of every file that the change replaces or removes;
2. the manifest that names the new files is written: from here on the change is made;
3. each file moves to its place, weights before the graphs that read them;
4. what the manifest does not name any more is removed, and at last the folder.

A process that was killed leaves the folder to the next one. A file in it that has the hash in the
manifest belongs to a change that was made, and moves (3); the others are removed. The folder may
also come from somebody else, with the export. What it says is therefore not trusted: a file is
replaced or removed only where its content has the hash that the folder states, and no link in it is
followed. See docs/adr/0017.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import ExportDirectoryError, StorageError
from lora_export.core.files import (
    require_plain,
    resolve_inside,
    sha256_of_file,
    storage_errors,
    sync_folder,
    write_synced,
)
from lora_export.core.json_file import read_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = ["WAITING", "finish", "is_committed", "is_waiting", "stage_change", "waiting_files"]

WAITING: Final = ".lora_export.next"
_REPLACED: Final = ".replaced.json"
_GONE: Final = ".gone.json"
"""The journal of versions up to 1.0: names without hashes. It is not obeyed."""

_LIMIT_BYTES: Final = 1 << 24
_LEFT: Final = (
    "The change is recorded: the next command on this export puts its files into their places."
)


def stage_change(root: Path, staging: Path, replaced: Mapping[str, str]) -> None:
    """Turn `staging`, a private folder in `root`, into the one whose files wait (1).

    Args:
        root: The directory, whose lock the caller holds; nothing waits in it.
        staging: The new files, synced, by the paths that they will have.
        replaced: The SHA-256 of each file that is replaced or removed.

    Raises:
        ExportDirectoryError: Something else is in the place of the folder or of a file.
        StorageError: The disk refuses.
    """
    with storage_errors(str(root)), _undone(root, list(waiting_files(staging))) as waiting:
        for file in waiting:
            place = resolve_inside(root, file)
            require_plain(place)
            place.parent.mkdir(parents=True, exist_ok=True)  # after the manifest it may not fail
        write_synced(staging / _REPLACED, json.dumps(dict(sorted(replaced.items()))).encode())
        for folder, _, _ in os.walk(staging, topdown=False):
            sync_folder(Path(folder))
        staging.rename(root / WAITING)
        sync_folder(root)


@contextlib.contextmanager
def _undone(root: Path, waiting: Collection[str]) -> Iterator[Collection[str]]:
    """Remove the folders that were made for files that wait, after an error."""
    try:
        yield waiting
    except BaseException:
        _remove(root, (), waiting)
        raise


def is_waiting(root: Path) -> bool:
    """Whether there is a folder of files that wait; no link is followed."""
    try:
        return stat.S_ISDIR((root / WAITING).lstat().st_mode)
    except OSError:
        return False


def is_committed(root: Path, files: Mapping[str, str]) -> bool:
    """Whether a change was made (2) and not finished: something waits that `files` names.

    Args:
        root: The directory.
        files: The SHA-256 of each file, as its manifest says.

    Raises:
        ExportDirectoryError: What waits cannot be read.
    """
    if not is_waiting(root):
        return False
    folder = root / WAITING
    try:
        return any(_is_named(folder, file, files) for file in waiting_files(folder))
    except FileNotFoundError:
        return True  # another process finishes it meanwhile
    except OSError as error:
        msg = f"{str(folder)!r}, a change that was cut short, cannot be read: {error.strerror}"
        raise ExportDirectoryError(msg, hint="Check its permissions.") from error


def finish(root: Path, files: Mapping[str, str], *, removed: Collection[str] | None = None) -> None:
    """Finish a change that was made, and remove what one that was not has left (3, 4).

    Args:
        root: The directory, whose lock the caller holds.
        files: The SHA-256 of each file, as its manifest says.
        removed: The files to remove, from the process that staged the change; nothing is hashed
            then. None where the change is another process's, or somebody else's.

    Raises:
        ExportDirectoryError: The folder is not what this module leaves: it would replace or remove
            a file without stating its hash, leads outside `root`, or is not a folder.
        StorageError: The disk refuses.
    """
    folder = root / WAITING
    if not is_waiting(root):
        if os.path.lexists(folder):
            msg = f"{str(folder)!r} is in the way of changes: it is not a folder"
            raise ExportDirectoryError(msg, hint="Remove it.")
        return
    own = removed is not None
    with storage_errors(str(root)):
        waiting = list(waiting_files(folder))
        if removed is None:
            moved = [file for file in waiting if _is_named(folder, file, files)]
            stated = _stated(folder)
            _require_stated(root, moved, files, stated)
            removed = [file for file in stated if _is_stated(root, file, stated)]
        else:
            moved = [file for file in waiting if file in files]
    _move(root, moved)
    unmade = set(waiting) - set(moved)
    try:
        for place in {resolve_inside(root, file).parent for file in moved}:
            sync_folder(place)
        _remove(root, (file for file in removed if file not in files), unmade)
        shutil.rmtree(folder)
    except OSError:
        if moved or own:
            return  # the export is whole: the next change removes the rest
        with storage_errors(str(folder)):
            raise  # nothing could be staged beside what is left


def _move(root: Path, moved: Collection[str]) -> None:
    """Give each file that waits its place (3)."""
    try:
        with storage_errors(str(root)):
            for file in sorted(moved, key=lambda each: (-each.count("/"), each)):
                place = resolve_inside(root, file)
                require_plain(place)
                place.parent.mkdir(parents=True, exist_ok=True)
                (root / WAITING / file).replace(place)
    except StorageError as error:
        raise StorageError(error.message, hint=_LEFT) from error


def _remove(root: Path, files: Iterable[str], unmade: Iterable[str]) -> None:
    """Remove files, the folders that they leave empty, and those made for `unmade` files."""
    for file in files:
        place = resolve_inside(root, file)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR(place.lstat().st_mode):
                place.unlink()
        _remove_empty(place.parent, root / file.partition("/")[0])
    for file in unmade:
        _remove_empty(resolve_inside(root, file).parent, root)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove folders in `root` that are empty, from `folder` on; `root` stays."""
    with contextlib.suppress(OSError):
        while root in folder.parents:
            folder.rmdir()
            folder = folder.parent


def waiting_files(folder: Path) -> Iterator[str]:
    """Yield the paths of the regular files in a folder that waits, as they will be."""
    for inner, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(inner, name)
            with contextlib.suppress(FileNotFoundError):
                if name not in {_REPLACED, _GONE} and stat.S_ISREG(path.lstat().st_mode):
                    yield path.relative_to(folder).as_posix()


def _is_named(folder: Path, file: str, files: Mapping[str, str]) -> bool:
    return file in files and sha256_of_file(folder / file) == files[file]


def _require_stated(
    root: Path, moved: Iterable[str], files: Mapping[str, str], stated: Mapping[str, str]
) -> None:
    """Require that each file that would be replaced is one whose hash is stated, or the new one.

    Raises:
        ExportDirectoryError: Another one would be lost.
    """
    for file in moved:
        place = resolve_inside(root, file)
        if not os.path.lexists(place) or _is_stated(root, file, {file: files[file]}):
            continue
        if not _is_stated(root, file, stated):
            msg = (
                f"a change of {str(root)!r} that was cut short would replace {file!r}, and does "
                "not state its SHA-256"
            )
            hint = (
                f"It comes from somebody else or from an older version. If you do not know it, "
                f"remove {str(root / WAITING)!r}; to finish it, move {file!r} away and run again."
            )
            raise ExportDirectoryError(msg, hint=hint)


def _is_stated(root: Path, file: str, stated: Mapping[str, str]) -> bool:
    """Whether a regular file is in its place and has the hash that is stated."""
    place = resolve_inside(root, file)
    try:
        regular = stat.S_ISREG(place.lstat().st_mode)
        return regular and sha256_of_file(place) == stated.get(file)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _stated(folder: Path) -> Mapping[str, str]:
    """Return the SHA-256 of each file that a change replaces or removes, as its folder states."""
    path, hint = folder / _REPLACED, f"Remove the folder {str(folder)!r}."
    if not os.path.lexists(path):
        return {}  # an older version's, or removed already, with the rest of the folder to come
    require_plain(path)
    found = read_table(path, _LIMIT_BYTES, ExportDirectoryError, absent=hint, damaged=hint)
    if not all(isinstance(each, str) for each in found.values()):
        msg = f"{str(path)!r} is not a table of hashes"
        raise ExportDirectoryError(msg, hint=hint)
    return found
