"""The report of an export written again after a change, where there is something to show.

What draws the page is imported only then: `add` and `remove` mostly have nothing to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.manifest import REPORTS_FOLDER, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["refresh_report"]


def refresh_report(export_dir: Path) -> Manifest:
    """Write the report of an export that has figures to show, or has a report; return the manifest.

    Raises:
        ExportDirectoryError: It is not an export, or one of its reports is damaged.
        StorageError: The disk refuses.
    """
    manifest = read_manifest(export_dir)
    if any(file.startswith(REPORTS_FOLDER) for file in manifest.files):
        from lora_export.report.write_report import write_report

        return write_report(export_dir)
    return manifest
