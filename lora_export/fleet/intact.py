"""Whether what a row made is still in the store as it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import InputError
from lora_export.core.files import resolve_inside

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.content import ContentHashes
    from lora_export.fleet.results import RowResult

__all__ = ["first_damage"]


def first_damage(store: Path, result: RowResult, hashes: ContentHashes) -> str | None:
    """Return what is wrong with the first damaged file of a row; None where all are as made.

    Args:
        store: The directory of the fleet.
        result: What the row made, with the SHA-256 of its files.
        hashes: Hashes of files that have not changed since they were read.
    """
    for file, sha256 in result.files.items():
        try:
            found = hashes.of_file(resolve_inside(store, file))
        except InputError as error:
            return error.message
        if found != sha256:
            return f"{file!r} has changed"
    return None
