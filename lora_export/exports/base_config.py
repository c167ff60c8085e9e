"""The copy of the base's ``config.json`` that an export holds, in ``hf/``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lora_export.core.errors import CheckpointError, ExportDirectoryError
from lora_export.weights.checkpoint import read_config

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.json_file import JsonObject

__all__ = ["has_base_config", "read_base_config"]

_FOLDER = "hf"


def has_base_config(export_dir: Path) -> bool:
    """Whether the export in `export_dir` holds a copy of its base's config, readable or not."""
    return os.path.lexists(export_dir / _FOLDER / "config.json")


def read_base_config(export_dir: Path) -> JsonObject:
    """Return the copy of the base's config in the export `export_dir`.

    Raises:
        ExportDirectoryError: It is missing or damaged.
    """
    try:
        return read_config(export_dir / _FOLDER)
    except CheckpointError as error:
        msg = f"the export {str(export_dir)!r} has no copy of its base's config: {error.message}"
        raise ExportDirectoryError(
            msg, hint="Copy the directory again, or export again."
        ) from error
