"""Whether what a row made is still in the store as it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.core.errors import InputError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import stored_manifest
from lora_export.exports.file_owners import files_of_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.fleet.content import ContentHashes

__all__ = ["files_of_all", "first_damage"]


def first_damage(
    store: Path,
    files: Mapping[str, str],
    hashes: ContentHashes,
    *,
    outside: Mapping[str, str] | None = None,
) -> str | None:
    """Return what is wrong with the first damaged file; None where all are as they were made.

    Args:
        store: The directory of the fleet.
        files: The SHA-256 of each file, by its path in the store.
        hashes: Hashes of files that have not changed since they were read.
        outside: The SHA-256 of files that are elsewhere, by their paths.
    """
    for file, sha256 in (*files.items(), *(outside or {}).items()):
        try:
            path = Path(file) if outside and file in outside else resolve_inside(store, file)
            found = hashes.of_file(path)
        except InputError as error:
            return error.message
        if found != sha256:
            return f"{file!r} has changed"
    return None


def files_of_all(store: Path, artifact: str) -> dict[str, str]:
    """Return the graphs and weights of an export that all of its rows share, with their SHA-256.

    Args:
        store: The directory of the fleet.
        artifact: The export, relative to the store.

    Raises:
        LoraExportError: Its manifest is missing or damaged.
    """
    manifest = stored_manifest(resolve_inside(store, artifact))
    return {f"{artifact}/{file}": manifest.files[file] for file in sorted(files_of_base(manifest))}
