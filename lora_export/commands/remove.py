"""``remove``: an adapter taken out of an export."""

from __future__ import annotations

from pathlib import Path

from lora_export.commands.outcome import Outcome
from lora_export.exports.change_adapters import remove_adapter
from lora_export.report.refresh_report import refresh_report
from lora_export.verification.record import prune_reports

__all__ = ["remove"]


def remove(export: str | Path, name: str) -> Outcome:
    """Remove an adapter from an export.

    Args:
        export: The export directory.
        name: The adapter.

    Raises:
        LoraExportError: See the class of the error; the export is as it was.
    """
    output = Path(export)
    remove_adapter(output, name)
    prune_reports(output)
    return Outcome(output, refresh_report(output))
