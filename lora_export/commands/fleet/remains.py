"""Adapters that an export has and a fleet does not: earlier ones, and those that have failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.commands.remove import remove
from lora_export.core.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["remove_others"]


def remove_others(export_dir: Path, names: Collection[str]) -> None:
    """Remove the adapters of an export but for some.

    Raises:
        LoraExportError: The export is damaged, or the disk refuses.
    """
    for name in read_manifest(export_dir).adapters:
        if name not in names:
            remove(export_dir, name)
