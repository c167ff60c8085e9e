"""The outcome of a command that changes an export: what was written, and its exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.core.errors import (
    LatencyError,
    ParityError,
)
from lora_export.core.modes import SHARED_GRAPHS

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.triton.repository import ModelRepository

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        output: The export directory.
        manifest: Its manifest.
        reports: The reports that were written, by name.
        notes: What the user should know of the adapters.
        triton: The model repository that the recipe asks for; None where it was not written.
    """

    output: Path
    manifest: Manifest
    reports: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    triton: ModelRepository | None = None

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, or the code of the gate that failed.

        `strict` fails what is ambiguous, and an adapter that was to be verified and is not.
        """
        for report, error in (("parity", ParityError), ("latency", LatencyError)):
            for name, row in self.reports.get(report, {}).get("graphs", {}).items():
                open_question = row["verdict"] == "ambiguous" or (
                    row["verdict"] == "unverified"
                    and name in {*self.manifest.adapters, *SHARED_GRAPHS}
                )
                if row["verdict"] == "fail" or (strict and open_question):
                    return error.exit_code
        return 0
