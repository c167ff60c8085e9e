"""The base of an existing export: its config, and its checkpoint where it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.hub import local_path
from lora_export.exports.base_config import has_base_config, read_base_config
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint, read_config
from lora_export.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest


__all__ = ["config_of", "matching_checkpoint"]


def config_of(export_dir: Path, base: str | Path | None) -> Mapping[str, Any] | None:
    """Return the config of the base, or of its copy in the export; None without either."""
    if base is not None:
        return read_config(local_path(str(base)))
    return read_base_config(export_dir) if has_base_config(export_dir) else None


def matching_checkpoint(manifest: Manifest, base: str | Path | None) -> Checkpoint | None:
    """Open the base of an export where it is given; None where it is not.

    Raises:
        ExportDirectoryError: It is another base than the export's.
    """
    if base is None:
        return None
    checkpoint = open_checkpoint(local_path(str(base)), source=str(base))
    digest = fingerprint(checkpoint)
    if digest != manifest.base.fingerprint:
        msg = (
            f"{str(base)!r} is not the base of this export: its fingerprint is {digest[:16]}…, "
            f"the export's {manifest.base.fingerprint[:16]}…"
        )
        raise ExportDirectoryError(msg, hint=f"The export was made from {manifest.base.source!r}.")
    return checkpoint
