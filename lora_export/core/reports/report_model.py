"""The model that all reports share: frozen rows that keep the keys of a file.

    graphs {name → row}      what was found of each graph or adapter
    environment              where it was found

A key without a value is left out of a file or null, as it was set: what was read is written again
byte for byte. Keys that a newer version added are kept.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_export.core.errors import ExportDirectoryError

__all__ = ["EnvironmentRow", "ReportModel", "as_json", "parse_report", "report_bytes"]

_HINT: Final = "Write it again with: lora-export verify OUT"

Model = TypeVar("Model", bound=BaseModel)


class ReportModel(BaseModel):
    """A report, or a part of one; mypy refuses an unknown key where it is made."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)


class EnvironmentRow(ReportModel):
    """The machine on which a report was made.

    Attributes:
        machine: The processor's architecture.
        system: The operating system.
        processors: How many processors it has.
        python: The version of Python.
        packages: The versions of the packages on which the figures depend.
        date: The day of the verification, in UTC: ``2026-11-30``; of a report that needs one.
    """

    machine: str = ""
    system: str = ""
    processors: int | None = None
    python: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    date: str = ""


def as_json(report: ReportModel) -> dict[str, Any]:
    """Return a report as JSON values, in the order of its fields, without the unset ones."""
    return report.model_dump(exclude_unset=True)


def report_bytes(report: ReportModel) -> bytes:
    """Return the contents of a report's file."""
    return json.dumps(as_json(report), indent=1).encode() + b"\n"


def parse_report(kind: type[Model], raw: bytes, source: str) -> Model:
    """Return the report of class `kind` in `raw`, the contents of the file `source`.

    Raises:
        ExportDirectoryError: The contents are not JSON, or no report of this kind.
    """
    try:
        return kind.model_validate(json.loads(raw))
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        msg = f"the report {source!r} is damaged: {first['msg']}, at {where}"
        raise ExportDirectoryError(msg, hint=_HINT) from cause
    except (ValueError, RecursionError) as cause:
        msg = f"the report {source!r} is damaged: {cause}"
        raise ExportDirectoryError(msg, hint=_HINT) from cause
