"""The sums of a plan: rows by kind, what is in the store, what the rest will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.fleet.results import Results
from lora_export.fleet.row_place import KINDS
from lora_export.fleet.store.open_store import home_of

if TYPE_CHECKING:
    from lora_export.fleet.fleet_plan import Plan

__all__ = ["plan_summary"]


def plan_summary(plan: Plan) -> dict[str, Any]:
    """Return the sums of a plan as JSON values.

    ``copies_bytes`` is what merged copies of the bases would take, one for each adapter: the
    comparison of the paper (section 4.2).
    """
    results = Results(home_of(plan.store))
    kinds: dict[str, dict[str, int]] = {}
    to_do = []
    for kind in KINDS:
        rows = [row for row in plan.rows if row.kind == kind]
        done = {row.id for row in rows if (r := results.read(row)) and r.status == "done"}
        if rows:
            kinds[kind] = {"rows": len(rows), "up_to_date": len(done)}
        to_do += [row for row in rows if row.id not in done]
    bases = {
        (row.base, row.variant): row.estimate.disk_bytes
        for row in plan.rows
        if row.kind == "export"
    }
    return {
        "rows": len(plan.rows),
        "kinds": kinds,
        "estimate": {
            "seconds": sum(row.estimate.seconds for row in to_do),
            "disk_bytes": sum(row.estimate.disk_bytes for row in to_do),
            "memory_bytes": max((row.estimate.memory_bytes for row in to_do), default=0),
            "copies_bytes": sum(
                bases.get((row.base, row.variant), 0) for row in plan.rows if row.kind == "adapter"
            ),
        },
    }
