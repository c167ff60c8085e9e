"""A change of an export: files and the manifest that names them, all or none.

Whenever its process is killed, the next that reads the manifest finds the export as it was or as it
was to be; see `lora_export.core.journal` for how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.files import resolve_inside, staging_folder, storage_errors, write_synced
from lora_export.core.journal import finish, stage_change
from lora_export.core.manifest import Manifest, stored_manifest, write_manifest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["change_export", "replace_files"]


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
        StorageError: The disk refuses.
    """
    try:
        stage_change(folder, staging, {*gone, *before.files} - set(after.files))
        write_manifest(folder, after)
    except BaseException:
        finish(folder, stored_manifest(folder).files)
        raise
    finish(folder, after.files)


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
