"""A change of an export: files and the manifest that names them, all or none.

Whenever its process is killed, the next that reads the manifest finds the export as it was or as it
was to be; see `lora_export.core.journal` for how.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import LoraExportError, StorageError
from lora_export.core.files import (
    resolve_inside,
    sha256_of_file,
    staging_folder,
    storage_errors,
    write_synced,
)
from lora_export.core.journal import finish, stage_change, waiting_files
from lora_export.core.manifest import Manifest, stored_manifest, write_manifest
from lora_export.ondevice.file_opening import require_file

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["change_export", "replace_files"]

_HASHED_BYTES: Final = 1 << 24
"""Up to this size a file that is replaced is hashed; for a larger one the manifest is believed."""


def change_export(
    folder: Path, staging: Path, before: Manifest, after: Manifest, gone: Collection[str] = ()
) -> None:
    """Put files into their places and write the manifest that names them, all or none.

    Args:
        folder: The directory, whose lock the caller holds (`edit_manifest`).
        staging: The new files, synced, by the paths that they will have; a private folder in
            `folder`, which is gone afterwards.
        before: The manifest as it is.
        after: The manifest as it will be; files of `before` that it does not name are removed.
        gone: Further files to remove, unless `after` names them.

    Raises:
        StorageError: The disk refuses: the export is as it was, or the error says that the change
            is recorded.
    """
    removed = {*gone, *before.files} - set(after.files)
    try:
        with storage_errors(str(folder)):
            replaced = _hashes(folder, before, {*removed, *waiting_files(staging)})
        stage_change(folder, staging, replaced)
        write_manifest(folder, after)
    except BaseException as error:
        if not _is_made(folder, before, after) or not isinstance(error, StorageError):
            raise
        return  # the manifest is there: only to make that durable failed
    finish(folder, after.files, removed=removed)


def _is_made(folder: Path, before: Manifest, after: Manifest) -> bool:
    """Undo a change that failed, or finish it; return whether its manifest was written."""
    with contextlib.suppress(LoraExportError):  # the next process does it
        stored = stored_manifest(folder)
        finish(folder, stored.files)
        return stored == after != before
    return False


def _hashes(folder: Path, before: Manifest, files: Collection[str]) -> dict[str, str]:
    """Return the SHA-256 of the files that are there; of large ones, that in the manifest."""
    found: dict[str, str] = {}
    for file in sorted(files):
        place = resolve_inside(folder, file)
        try:
            status = require_file(place)
        except OSError:
            continue  # absent, or nothing to replace
        known = before.files.get(file)
        small = status.st_size <= _HASHED_BYTES
        found[file] = known if known and not small else sha256_of_file(place)
    return found


def replace_files(
    folder: Path, before: Manifest, after: Manifest, contents: Mapping[str, bytes]
) -> Manifest:
    """Write small files and the manifest that names them, all or none; see `change_export`.

    Args:
        folder: The directory, whose lock the caller holds (`edit_manifest`).
        before: The manifest as it is.
        after: The manifest as it will be, at whose end the hashes of `contents` are added.
        contents: What the files hold, by their paths.

    Raises:
        StorageError: The disk refuses.
    """
    with staging_folder(folder, "files") as staging:
        digests: dict[str, str] = {}
        for file, data in contents.items():
            resolve_inside(folder, file)
            with storage_errors(file):
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
            digests[file] = write_synced(staging / file, data)
        others = {file: sha for file, sha in after.files.items() if file not in digests}
        updated = after.model_copy(update={"files": {**others, **digests}})
        change_export(folder, staging, before, updated)
    return updated
