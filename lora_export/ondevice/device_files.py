"""Files that are complete or absent: atomic writes, staging folders, locks, hashes, safe paths.

A file is written under a temporary name, synced, then renamed. What a killed process leaves behind
sits in a staging folder whose lock has died with it, and is removed by the next process that looks.
The standard library alone: host and device share these functions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import DeviceError, ExportDirectoryError
from lora_export.ondevice.file_locks import close_lock, lock, open_folder_lock, try_lock
from lora_export.ondevice.file_opening import (
    TABLE_LIMIT_BYTES,
    open_file,
    open_lock,
    read_file,
    real_path,
    reason_of,
)
from lora_export.ondevice.file_writing import (
    is_vacant,
    move_into_place,
    publish_file,
    publish_folder,
    require_plain,
    storage_errors,
    sync_folder,
    write_synced,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from io import BufferedReader

__all__ = [
    "atomic_write_bytes",
    "check_length",
    "exclusive_lock",
    "is_file_name",
    "is_relative_inside",
    "is_vacant",
    "move_into_place",
    "publish_file",
    "publish_folder",
    "read_errors",
    "read_json",
    "remove_abandoned",
    "require_inside",
    "resolve_inside",
    "sha256_of_file",
    "sha256_of_files",
    "staging_folder",
    "storage_errors",
    "sync_folder",
    "write_synced",
]

_READ_BLOCK_BYTES: Final = 1 << 22
_TEXT_BYTES: Final = 1 << 30
_LONGEST_BYTES: Final = {
    **dict.fromkeys((".html", ".jinja", ".json", ".jsonl", ".md", ".txt"), _TEXT_BYTES),
    ".npz": 1 << 31,
    ".onnx": (1 << 31) - 1,
    ".onnx_adapter": (1 << 31) - 1,
}
"""The length that a file of each kind may have, where it is known."""
_OFFSETS: Final = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,19}\s*,\s*(\d{1,19})\s*\]')
_STAGING_PREFIX: Final = ".lora-export-"
_STAGING_NAME: Final = re.compile(re.escape(_STAGING_PREFIX) + r".+-[a-z0-9_]{8}", re.DOTALL)
_LONGEST_STEM: Final = 40
_ATTEMPTS: Final = 100


@contextlib.contextmanager
def read_errors(what: str) -> Iterator[None]:
    """Translate an `OSError` raised while reading `what` on a device into a `DeviceError`."""
    try:
        yield
    except OSError as error:
        msg = f"cannot read {what}: {reason_of(error)}"
        raise DeviceError(msg, kind="input") from error


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> str:
    """Write `data` to `path`, complete or not at all; return its SHA-256 in hexadecimal.

    Raises:
        StorageError: The disk refuses; or a link or no regular file is at `path`.
    """
    with storage_errors(str(path)):
        require_plain(path)
        with staging_folder(path.parent, "file") as staging:
            digest = write_synced(staging / path.name, data)
            move_into_place(staging / path.name, path)
    return digest


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

    A file that is longer than its kind can be (a text of gigabytes, or a weight file that goes on
    behind its tensors) is not read: that takes long and its hash is none that was recorded.

    Raises:
        OSError: It cannot be read, or is too long (``EFBIG``).
    """
    digest = hashlib.sha256()
    with open_file(path) as stream:
        check_length(path, stream)
        size_bytes = os.fstat(stream.fileno()).st_size
        block = memoryview(bytearray(min(_READ_BLOCK_BYTES, size_bytes + 1)))
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def check_length(path: Path, stream: BufferedReader) -> None:
    """Require of a file, open at its start, that it is no longer than its kind can be.

    No more is read than the header of a weight file; afterwards it is open at its start again.

    Raises:
        OSError: It is longer (``EFBIG``).
    """
    size_bytes = os.fstat(stream.fileno()).st_size
    longest = _LONGEST_BYTES.get(path.suffix, size_bytes)
    if path.suffix == ".safetensors":
        length = int.from_bytes(stream.read(8), "little")
        if length <= TABLE_LIMIT_BYTES:
            ends = map(int, _OFFSETS.findall(stream.read(length)))
            longest = max(TABLE_LIMIT_BYTES, 8 + length + max(ends, default=0))
        stream.seek(0)
    if size_bytes > longest:
        raise OSError(errno.EFBIG, f"it is larger than {longest} bytes", str(path))


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, created if absent, until the block or the process ends.

    Raises:
        StorageError: The file cannot be opened, or is a symbolic link or no regular file.
    """
    with storage_errors(str(path)):
        descriptor = open_lock(path)
    try:
        with storage_errors(str(path)):
            lock(descriptor)
        yield
    finally:
        close_lock(descriptor)


@contextlib.contextmanager
def staging_folder(parent: Path, stem: str = "staging") -> Iterator[Path]:
    """Yield a private folder in `parent`, removed at the end unless it was renamed away.

    The folder is locked while this process lives. Folders that dead processes left in `parent` are
    removed first: their lock can be taken.
    """
    created: list[Path] = []
    try:
        with storage_errors(str(parent)):
            created += [each for each in (parent, *parent.parents) if not os.path.lexists(each)]
            folder, descriptor = _locked_folder(parent, stem)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            close_lock(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for each in created:  # gone again unless something was moved into them
                each.rmdir()


def _locked_folder(parent: Path, stem: str) -> tuple[Path, int | None]:
    """Make a folder and lock it; again if another process swept it or `parent` away in between."""
    for left in reversed(range(_ATTEMPTS)):
        name = f"{_STAGING_PREFIX}{stem[:_LONGEST_STEM]}-{os.urandom(4).hex()}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(parent)
            (parent / name).mkdir()  # as the umask allows: it becomes the output
            descriptor = open_folder_lock(parent / name)
        except (FileNotFoundError, FileExistsError):
            if not left or (parent.exists() and not parent.is_dir()):
                raise
            continue
        lock(descriptor)
        if (parent / name).exists():
            return parent / name, descriptor
        close_lock(descriptor)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parent))


def remove_abandoned(parent: Path) -> None:
    """Remove the staging folders in `parent` whose process is gone."""
    for folder in parent.glob(f"{_STAGING_PREFIX}*-*"):
        if not _STAGING_NAME.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue  # somebody else's
        with contextlib.suppress(OSError):
            descriptor = open_folder_lock(folder)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                close_lock(descriptor)


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


def require_inside(root: Path, files: Iterable[str]) -> None:
    """Require of many paths what `resolve_inside` requires of one; each folder is followed once.

    Raises:
        ExportDirectoryError: As `resolve_inside` raises it.
    """
    folders: set[str] = set()
    for file in files:
        folder, _, name = file.rpartition("/")
        plain = is_file_name(name) and is_relative_inside(file)
        if not plain or os.path.islink(f"{root}/{file}"):  # noqa: PTH114  (thousands of them)
            resolve_inside(root, file)
        elif folder not in folders:
            resolve_inside(root, folder or ".")
            folders.add(folder)


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
        msg = f"{what} {str(path)!r} is not a table"
        raise DeviceError(msg, kind="input")
    return table
