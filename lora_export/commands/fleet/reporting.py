"""The reports of a run, written while it runs and at its end: JSON, Markdown and one page of HTML.

Writing them takes longer the more rows there are. While rows run, they are written at most once a
second, and for at most a twentieth of the time; the page is written at the end alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.status import read_status
from lora_export.core.errors import InputError
from lora_export.core.files import atomic_write_bytes
from lora_export.fleet.fleet_matrix import adapter_table
from lora_export.fleet.fleet_report import (
    REPORT_HTML,
    report_table,
    write_report,
)
from lora_export.fleet.run_changes import changes_between, rows_by_id
from lora_export.report.fleet_page import fleet_page

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan
    from lora_export.fleet.results import RowResult
    from lora_export.fleet.results import RowState as State

__all__ = ["Reporting"]

_LEAST_SECONDS: Final = 1.0
_SHARE: Final = 20.0


@dataclass
class Reporting:
    """The reports in a store.

    Args:
        store: The directory of the fleet.
        plan: The plan that is run.
        source: The file that was run, as the user named it.
        whole: Whether the plan is the whole fleet, and not some of its rows.

    Attributes:
        left: The seconds that are left, as of the last report; None before there is anything to
            estimate them from.
    """

    store: Path
    plan: Plan
    source: str
    whole: bool = True
    left: float | None = None
    _before: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _last: float | None = None
    _took: float = 0.0

    def __post_init__(self) -> None:
        """Read the report of the run before, whose rows the new ones are compared with."""
        try:
            self._before = read_status(self.store)
        except InputError:
            self._before = {}  # none, or none that can be read: nothing to compare with

    def update(self, states: Mapping[str, State], results: Mapping[str, RowResult]) -> None:
        """Write the reports of a run under way, unless that was done just now.

        Raises:
            StorageError: The disk refuses.
        """
        now = time.monotonic()
        if self._last is not None and now - self._last < max(_LEAST_SECONDS, _SHARE * self._took):
            return
        self.left = self._seconds_left(states)
        write_report(self.store, self._table(states, results, running=True, left=self.left))
        self._last = time.monotonic()
        self._took = self._last - now

    def finish(
        self, states: Mapping[str, State], results: Mapping[str, RowResult]
    ) -> dict[str, Any]:
        """Write the last reports; return the table.

        Raises:
            StorageError: The disk refuses.
        """
        table = self._table(states, results, running=False, left=None)
        write_report(self.store, table)
        atomic_write_bytes(self.store / REPORT_HTML, fleet_page(table).encode())
        return table

    def _seconds_left(self, states: Mapping[str, State]) -> float | None:
        """Return the time that is left: what estimates say, at the pace of the rows made so far."""
        made = {row.id: row.estimate.seconds for row in self.plan.rows
                if states[row.id] in {"done", "failed"}}  # fmt: skip
        left = sum(row.estimate.seconds for row in self.plan.rows
                   if states[row.id] in {"waiting", "running"})  # fmt: skip
        done = sum(made.values())
        if not done:
            return None
        return round((time.monotonic() - self._began) * left / done, 1)

    def _table(
        self,
        states: Mapping[str, State],
        results: Mapping[str, RowResult],
        *,
        running: bool,
        left: float | None,
    ) -> dict[str, Any]:
        table = report_table(
            self.plan, states, results, running=running, source=self.source, seconds_left=left
        )
        table["seconds"] = round(time.monotonic() - self._began, 1)
        table["adapters"] = adapter_table(table["rows"], self.plan.targets)
        table["changes"] = self._changes(rows_by_id(table))
        return table

    def _changes(self, after: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """Return what is different from the run before; None where there was none."""
        if not self._before:
            return None
        before = rows_by_id(self._before)
        if not self.whole:
            before = {name: row for name, row in before.items() if name in after}
        return {"since": self._before.get("date"), **changes_between(before, after)}
