"""Model folders: assembled beside the repository from copies, then renamed.

A server that polls the repository, or is told to load a model, sees a folder whole or not at all.
Files may be hard links to the export, where that is asked for; `onnx` opens no graph whose weights
are such links.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import AdapterError, ExportDirectoryError, UsageError
from lora_export.core.files import (
    cannot_link,
    copy_file,
    is_taken,
    move_into_place,
    staging_folder,
    storage_errors,
    sync_folder,
    write_synced,
)
from lora_export.ondevice.file_opening import (
    read_file,
    real_path,
    reason_of,
    require_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "File",
    "is_copy",
    "is_placed",
    "is_plain",
    "locked",
    "place_file",
    "place_folder",
    "remove_folder",
    "staging_beside",
]

_BLOCK_BYTES: Final = 1 << 22
_PLAIN: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def is_plain(path: str) -> bool:
    """Whether a path means itself to a shell, through which Triton starts a Python model."""
    return _PLAIN.fullmatch(path) is not None


@dataclass(frozen=True)
class File:
    """A file of a model folder: a copy of `source`, or `data`.

    Attributes:
        path: Where it goes, relative to the model's folder.
        source: The file that it is; never changed in place by its owner.
        data: Its content, where it is not a copy.
    """

    path: str
    source: Path | None = None
    data: bytes = b""

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self.data) if self.source is None else self.source.stat().st_size


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Hold a repository's lock: writers follow one another. No file is made in it.

    Raises:
        ExportDirectoryError: There is no such folder.
    """
    try:
        descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        msg = f"{str(repository)!r} is not a model repository: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint="Make one with: lora-export triton EXPORT") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging_beside(repository: Path) -> Iterator[Path]:
    """Yield a private folder beside `repository`, where Triton does not look.

    Raises:
        UsageError: The repository is the root of a file system.
        StorageError: The disk refuses.
    """
    parent = real_path(repository).parent
    with storage_errors(str(repository)):
        apart = repository.exists() and repository.stat().st_dev != parent.stat().st_dev
    if apart:
        msg = f"{str(repository)!r} is on another file system than the folder that it lies in"
        raise UsageError(msg, hint="Use a folder below it as the repository.")
    with staging_folder(parent, "triton") as folder:
        yield folder


def place_folder(
    repository: Path,
    name: str,
    files: Sequence[File],
    *,
    hint: str,
    hardlink: bool = False,
    replace: bool = False,
) -> None:
    """Give a new folder of the repository its files and then its name.

    Args:
        repository: The repository.
        name: The folder's name.
        files: Its files.
        hint: What to do where there is such a folder.
        hardlink: Whether files are links to their sources, where the file system has such links.
        replace: Whether a folder of that name gives way to it, at once.

    Raises:
        AdapterError: There is such a folder.
        StorageError: The disk refuses; nothing is left behind.
    """
    target = repository / name
    with staging_beside(repository) as staging:
        folder = staging / "model"
        with storage_errors(str(folder)):
            folder.mkdir()
        for each in files:
            _write(folder / each.path, each, hardlink=hardlink)
        with storage_errors(str(target)):
            for inner in sorted({(folder / each.path).parent for each in files}):
                sync_folder(inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            if replace and os.path.lexists(target):
                target.rename(staging / "replaced")
            try:
                os.rename(folder, target)  # noqa: PTH104  (fails where there is something)
            except OSError as error:
                if is_taken(error):
                    msg = f"{str(target)!r} is there already"
                    raise AdapterError(msg, hint=hint) from error
                raise
            sync_folder(target.parent)


def is_placed(folder: Path, files: Sequence[File]) -> bool:
    """Whether a folder holds these files and no others."""
    wanted = {each.path: each for each in files}
    found = {e.relative_to(folder).as_posix(): e for e in folder.rglob("*") if not e.is_dir()}
    return found.keys() == wanted.keys() and all(
        is_copy(path, wanted[name]) for name, path in found.items()
    )


def is_copy(path: Path, file: File) -> bool:
    """Whether a file of a repository is what a folder would be given now."""
    try:
        if require_file(path).st_size != file.nbytes:
            return False
        if file.source is None:
            return read_file(path, file.nbytes) == file.data
        return path.samefile(file.source) or filecmp.cmp(path, file.source, shallow=False)
    except OSError:
        return False  # it is written again, and what is in the way is named then


def place_file(repository: Path, folder: Path, file: File) -> None:
    """Put one file into a model's folder, complete or not at all; one of its name is replaced.

    Raises:
        StorageError: The disk refuses.
    """
    target = folder / file.path
    with staging_beside(repository) as staging:
        _write(staging / "file", file)
        with storage_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not real_path(target.parent).is_relative_to(real_path(folder)):
                msg = f"{str(target.parent)!r} is a link that leads out of {str(folder)!r}"
                raise AdapterError(msg, hint="The repository is damaged or hostile.")
            move_into_place(staging / "file", target)


def remove_folder(repository: Path, folder: Path) -> None:
    """Take a folder out of the repository at once, then delete it.

    Raises:
        StorageError: The disk refuses.
    """
    with staging_beside(repository) as staging, storage_errors(str(folder)):
        folder.rename(staging / "gone")
        sync_folder(folder.parent)
        if (staging / "gone").is_symlink():
            (staging / "gone").unlink()  # what it led to is not ours
        else:
            shutil.rmtree(staging / "gone")


def _write(path: Path, file: File, *, hardlink: bool = False) -> None:
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.source is None:
            write_synced(path, file.data)
        elif not hardlink or not _linked(file.source, path):
            require_file(file.source)
            copy_file(file.source, path, synced=True)


def _linked(source: Path, path: Path) -> bool:
    """Link `path` to a file; False where the file system cannot."""
    try:
        require_file(source)
        os.link(real_path(source), path)  # never a link to a link
    except OSError as error:
        if not cannot_link(error):
            raise
        return False
    return True
