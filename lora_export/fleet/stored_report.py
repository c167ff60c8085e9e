"""The report of a store, read back: what commands show of it and compare has its types."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_export.core.model_json import first_finding

__all__ = ["require_report"]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, defer_build=True)


class _Row(_Read):
    id: str
    status: str
    exit_code: int
    message: str
    key: str | None = None
    next: str | None = None
    verdict: str | None = None


class _Report(_Read):
    counts: dict[str, int]
    rows: list[_Row]
    running: bool
    store: str
    date: str | None = None
    seconds_left: float | None = None


def require_report(table: Any) -> None:
    """Require that a value is the report of a fleet, as `lora_export.fleet.fleet_report` makes it.

    Raises:
        ValueError: It is not; the text names the setting.
    """
    try:
        _Report.model_validate(table)
    except ValidationError as error:
        raise ValueError(first_finding(error, "the report")) from error
