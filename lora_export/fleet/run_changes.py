"""The differences between two states of a fleet: two runs, two plans, or a plan and a run.

A state is a table of rows by name, as a report has them; the rows of a plan have a key and no
status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CHANGES", "changes_between", "rows_by_id"]

CHANGES: Final = {
    "new": "new",
    "gone": "no longer in the fleet",
    "changed": "made of other inputs or settings",
    "failing": "failed, and did not before",
    "mended": "failed before, and does not any more",
    "verdict": "with another verdict",
}
"""The kinds of changes, with what they are called."""

_GOOD: Final = frozenset({"done", "skipped"})
_BAD: Final = frozenset({"failed", "blocked"})


def rows_by_id(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of a report or of a plan by name; what is no row is left out."""
    rows = table.get("rows")
    return {
        row["id"]: row
        for row in (rows if isinstance(rows, (list, tuple)) else ())
        if isinstance(row, dict) and isinstance(row.get("id"), str)
    }


def changes_between(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return the names of the rows that differ, by kind of change; kinds without any are left out.

    Args:
        before: Rows by name.
        after: Rows by name.
    """
    both = [name for name in after if name in before]
    found: dict[str, Sequence[str]] = {
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
        "changed": [name for name in both if before[name].get("key") != after[name].get("key")],
        "failing": [name for name in both if _went(before[name], after[name], _GOOD, _BAD)],
        "mended": [name for name in both if _went(before[name], after[name], _BAD, _GOOD)],
        "verdict": [
            name
            for name in both
            if before[name].get("verdict") and after[name].get("verdict")
            and before[name]["verdict"] != after[name]["verdict"]
        ],
    }  # fmt: skip
    return {kind: sorted(names) for kind, names in found.items() if names}


def _went(
    before: Mapping[str, Any], after: Mapping[str, Any], start: frozenset[str], end: frozenset[str]
) -> bool:
    return before.get("status") in start and after.get("status") in end
