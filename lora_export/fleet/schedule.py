"""Which rows of a plan can run now; which never will, because a row that they need has failed.

waiting → running → done | failed
waiting → skipped      what has its key is in the store
waiting → blocked      a row that it needs failed or is blocked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.fleet.plan import Plan, Row
    from lora_export.fleet.results import RowState

__all__ = ["Schedule"]

_OPEN: Final = frozenset({"waiting", "running"})
_GOOD: Final = frozenset({"done", "skipped"})


class Schedule:
    """The states of a plan's rows. Rows that wait for each other run in the plan's order.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._rows = {row.id: row for row in plan.rows}
        self.states: dict[str, RowState] = dict.fromkeys(self._rows, "waiting")
        self._missing = {row.id: len({*row.needs, *row.after}) for row in plan.rows}
        self._waiters: dict[str, list[str]] = {row.id: [] for row in plan.rows}
        for row in plan.rows:
            for before in {*row.needs, *row.after}:
                self._waiters[before].append(row.id)
        self._ready = [row.id for row in plan.rows if not self._missing[row.id]]

    @property
    def is_finished(self) -> bool:
        """Whether no row waits or runs."""
        return not self._ready and "running" not in self.states.values()

    def ready(self) -> Iterator[Row]:
        """Yield the rows that can run now, in the plan's order of becoming ready."""
        for name in list(self._ready):
            yield self._rows[name]

    def begin(self, row: Row) -> None:
        """Mark a row that was ready as running."""
        self._ready.remove(row.id)
        self.states[row.id] = "running"

    def end(self, row: Row, state: RowState) -> list[Row]:
        """Mark a row as ended; return the rows that are blocked by it."""
        if row.id in self._ready:
            self._ready.remove(row.id)
        self.states[row.id] = state
        blocked: list[Row] = []
        ended = [row.id]
        while ended:
            for name in self._waiters[ended.pop()]:
                self._missing[name] -= 1
                if self._missing[name]:
                    continue
                needs = self._rows[name].needs
                if all(self.states[each] in _GOOD for each in needs):
                    self._ready.append(name)
                else:
                    self.states[name] = "blocked"
                    blocked.append(self._rows[name])
                    ended.append(name)
        return blocked

    def blockers(self, row: Row) -> list[str]:
        """Return the rows that `row` needs and that did not succeed."""
        return [name for name in row.needs if self.states[name] not in _GOOD | _OPEN]
