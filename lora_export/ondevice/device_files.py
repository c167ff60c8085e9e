"""Files that are complete or absent, and their hashes, with the standard library alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["inside", "read_json", "sha256_of_file", "storage_errors", "write_whole"]

_BLOCK_BYTES: Final = 1 << 22
_LIMIT_BYTES: Final = 1 << 26
_PARTIAL: Final = ".partial"


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate an `OSError` raised while writing `what`."""
    try:
        yield
    except OSError as error:
        msg = f"cannot write {what}: {error.strerror}"
        hint = "Free some space or choose another directory; nothing was left behind."
        raise DeviceError(msg, hint=hint, kind="storage") from error


def write_whole(path: Path, data: bytes | memoryview) -> str:
    """Write a file under another name, sync and rename it; return its SHA-256 in hexadecimal.

    What a killed run left under that other name is removed.

    Raises:
        DeviceError: The disk refuses; there is no new file then.
    """
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{path.name}.*{_PARTIAL}"):
            old.unlink()
        partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        _sync_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in blocks.

    Raises:
        DeviceError: It cannot be read.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    try:
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(block):
                digest.update(block[:count])
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {error.strerror}"
        raise DeviceError(msg, kind="input") from error
    return digest.hexdigest()


def read_json(path: Path, what: str) -> Mapping[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        DeviceError: It is missing, too large, or holds something else.
    """
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            msg = f"{what} {str(path)!r} is larger than {_LIMIT_BYTES} bytes"
            raise DeviceError(msg, kind="input")
        table = json.loads(path.read_text("utf-8"))
    except OSError as error:
        msg = f"cannot read {what} {str(path)!r}: {error.strerror}"
        raise DeviceError(msg, kind="input") from error
    except (ValueError, RecursionError) as error:
        msg = f"{what} {str(path)!r} is not readable JSON: {error}"
        raise DeviceError(msg, kind="input") from error
    if not isinstance(table, dict):
        msg = f"{what} {str(path)!r} holds no table"
        raise DeviceError(msg, kind="input")
    return table


def inside(root: Path, relative: str) -> Path:
    """Return ``root / relative``, refusing every path that leads outside `root`.

    Raises:
        DeviceError: It is absolute, climbs, or passes a link that leaves `root`.
    """
    parts = Path(relative).parts
    ill = not relative or Path(relative).is_absolute() or ".." in parts or "\0" in relative
    path = root / relative if not ill else root
    if ill or root.resolve() not in path.resolve().parents:
        msg = f"path {relative!r} leads outside {str(root)!r}"
        raise DeviceError(msg, hint="The file that names it is damaged or hostile.", kind="input")
    return path
