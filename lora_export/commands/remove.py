"""``remove``: an adapter taken out of an export."""

from __future__ import annotations

from pathlib import Path

from lora_export.commands.after_change import ReportUpdates
from lora_export.commands.outcome import Outcome
from lora_export.core.progress import Progress, Silent
from lora_export.exports.change_adapters import remove_adapter
from lora_export.report.refresh_report import refresh_report
from lora_export.verification.record import prune_reports

__all__ = ["remove"]


def remove(export: str | Path, name: str, *, progress: Progress | None = None) -> Outcome:
    """Remove an adapter from an export.

    Args:
        export: The export directory.
        name: The adapter.
        progress: Told what could not be done after the removal, such as writing a report.

    Raises:
        LoraExportError: See the class of the error; the export is as it was.
    """
    export_dir = Path(export)
    manifest = remove_adapter(export_dir, name)
    after = ReportUpdates(export_dir, f"adapter {name!r} was removed", progress or Silent())
    with after.step("the reports could not be brought up to date"):
        manifest = prune_reports(export_dir)
        manifest = refresh_report(export_dir)
    return Outcome(export_dir, manifest, notes=after.notes())
