"""The place of a layout: vacant, or a directory that ``layout`` wrote and that may be replaced."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import ExportDirectoryError, UsageError
from lora_export.core.files import (
    is_vacant,
    publish_folder,
    sha256_of_file,
    staging_folder,
    storage_errors,
)
from lora_export.core.layout_record import LAYOUT_RECORD, read_layout
from lora_export.ondevice.file_opening import real_path, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fresh_folder", "require_place"]

_HASHED_BYTES: Final = 1 << 24
"""Files up to this size are compared by their SHA-256, larger ones by their size."""
_KEPT: Final = "Nothing was changed."


def require_place(output: Path, export_dir: Path, *, replace: bool) -> None:
    """Require that a layout may be written at `output`.

    Args:
        output: Where it goes.
        export_dir: The export.
        replace: Whether a layout that is there is replaced.

    Raises:
        UsageError: It lies in the export, or the export in it.
        ExportDirectoryError: Something is there that is not replaced.
        StorageError: The path cannot be looked at.
    """
    place, export = real_path(output), real_path(export_dir)
    if place.is_relative_to(export) or export.is_relative_to(place):
        msg = f"{str(output)!r} lies in the export {str(export_dir)!r}, or contains it"
        raise UsageError(msg, hint=f"Choose another -o. {_KEPT}")
    if is_vacant(output):
        return
    if not replace:
        msg = f"{str(output)!r} exists already"
        raise ExportDirectoryError(
            msg, hint=f"Choose another -o, or pass --replace to replace it. {_KEPT}"
        )
    if problem := _not_ours(output):
        msg = f"{str(output)!r} is not replaced: {problem}"
        raise ExportDirectoryError(msg, hint=f"Choose another -o, or move it away. {_KEPT}")


@contextlib.contextmanager
def fresh_folder(output: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a private folder that is given the name `output` at the end of the block, whole.

    Args:
        output: Where it goes; see `require_place`.
        replace: Whether a layout that is there by then is replaced.

    Raises:
        ExportDirectoryError: Another process has written `output` meanwhile.
        StorageError: The disk refuses; nothing is left behind.
    """
    with staging_folder(output.parent, output.name) as staging:
        fresh, old = staging / "new", staging / "old"
        with storage_errors(str(output)):
            fresh.mkdir()
        yield fresh
        if not replace or is_vacant(output):
            publish_folder(fresh, output)
            return
        with storage_errors(str(output)):
            output.rename(old)
        try:
            publish_folder(fresh, output)
        except BaseException:
            if not os.path.lexists(output):
                old.rename(output)
            raise


def _not_ours(output: Path) -> str | None:
    """Return why a folder is not one that ``layout`` wrote, or None."""
    with storage_errors(str(output)):
        if not stat.S_ISDIR(output.lstat().st_mode):
            return "it is not a folder"
        if os.path.lexists(output / LAYOUT_RECORD):
            return _changed(output)
        inner = sorted(output.iterdir())
        for each in inner:  # one folder for each adapter
            if each.is_symlink() or not os.path.lexists(each / LAYOUT_RECORD):
                return f"{each.name!r} in it was not written by lora-export layout"
            if problem := _changed(each):
                return problem
    return None


def _changed(folder: Path) -> str | None:
    """Return which file of a layout is not as it was written, or None."""
    try:
        record = read_layout(folder)
    except ExportDirectoryError as error:
        return error.message
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            relative = path.relative_to(folder).as_posix()
            is_folder = name in folders and not path.is_symlink()
            if is_folder or relative == LAYOUT_RECORD:
                continue
            known = record.files.get(relative)
            if known is None or path.is_symlink():
                return f"{str(path)!r} was not written by lora-export layout"
            try:
                if path.lstat().st_size != known.bytes or (
                    known.bytes <= _HASHED_BYTES and sha256_of_file(path) != known.sha256
                ):
                    return f"{str(path)!r} was changed since it was written"
            except OSError as error:
                return f"{str(path)!r} cannot be read: {reason_of(error)}"
    return None
