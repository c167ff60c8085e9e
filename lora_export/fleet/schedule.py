"""The rows of a plan that can run now, and those that a failure has blocked.

waiting → running → done | failed
waiting → skipped      what has its key is in the store
waiting → blocked      a row that it needs failed or is blocked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lora_export.fleet.fleet_plan import Plan, Row
    from lora_export.fleet.results import RowState

__all__ = ["Schedule"]

_GOOD: Final = frozenset({"done", "skipped"})


class Schedule:
    """The states of a plan's rows. Rows that wait for each other run in the plan's order.

    `ended` is the number of rows that nothing is left to do for.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._rows = {row.id: row for row in plan.rows}
        self.ended = 0
        self.states: dict[str, RowState] = dict.fromkeys(self._rows, "waiting")
        self._missing = {row.id: len({*row.needs, *row.after}) for row in plan.rows}
        self._waiters: dict[str, list[str]] = {row.id: [] for row in plan.rows}
        for row in plan.rows:
            for before in {*row.needs, *row.after}:
                self._waiters[before].append(row.id)
        self._ready = {row.id: row for row in plan.rows if not self._missing[row.id]}

    def next_ready(self) -> Row | None:
        """Return the row that has been ready for longest; None where none is."""
        return next(iter(self._ready.values()), None)

    def begin(self, row: Row) -> None:
        """Mark a row that was ready as running."""
        del self._ready[row.id]
        self.states[row.id] = "running"

    def end(self, row: Row, state: RowState) -> list[Row]:
        """Mark a row as ended; return the rows that are blocked by it."""
        self._ready.pop(row.id, None)
        self.states[row.id] = state
        blocked: list[Row] = []
        ended = [row.id]
        self.ended += 1
        while ended:
            for name in self._waiters[ended.pop()]:
                self._missing[name] -= 1
                if self._missing[name]:
                    continue
                needs = self._rows[name].needs
                if all(self.states[each] in _GOOD for each in needs):
                    self._ready[name] = self._rows[name]
                else:
                    self.states[name] = "blocked"
                    self.ended += 1
                    blocked.append(self._rows[name])
                    ended.append(name)
        return blocked

    def is_good(self, name: str) -> bool:
        """Return whether a row has succeeded, in this run or before."""
        return self.states[name] in _GOOD

    def stop(self) -> None:
        """Mark rows that are running as waiting: the run ends before they do."""
        for name, state in self.states.items():
            if state == "running":
                self.states[name] = "waiting"

    def is_outdated(self, row: Row) -> bool:
        """Return whether a row that `row` waits for was made anew, so that `row` has to be too."""
        return any(self.states[name] == "done" for name in {*row.needs, *row.after})
