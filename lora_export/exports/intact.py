"""Whether an export still holds the bytes that its manifest promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.base.errors import ExportDirectoryError
from lora_export.base.files import resolve_inside, sha256_of_file

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.base.manifest import Manifest

__all__ = ["require_intact"]


def require_intact(root: Path, manifest: Manifest) -> None:
    """Require that every file of the manifest is there with its hash.

    Raises:
        ExportDirectoryError: A file is missing or differs; the first is named.
    """
    for file, digest in sorted(manifest.files.items()):
        path = resolve_inside(root, file)
        if not path.is_file():
            msg = f"the export {str(root)!r} lacks its file {file!r}"
            raise ExportDirectoryError(msg, hint="Copy the directory again, or export again.")
        if sha256_of_file(path) != digest:
            msg = f"the file {file!r} of the export {str(root)!r} is not what was written"
            raise ExportDirectoryError(msg, hint="Copy the directory again, or export again.")
