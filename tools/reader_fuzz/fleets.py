"""Readers of fleets: what users write, the plan, and the reports of a store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.commands.fleet.status import read_status
from lora_export.commands.fleet.summary import plan_summary
from lora_export.core.progress import Silent
from lora_export.fleet.fleet_plan import Estimate, Plan, Row, key_of, read_plan
from lora_export.fleet.fleet_report import worst_first
from lora_export.fleet.run_changes import changes_between, rows_by_id
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.reader_fuzz.reader import Mutator

__all__ = ["FLEETS"]

_JSON: Final[tuple[Mutator, ...]] = (mutate_json,)
_WEIGHTS: Final = "weights.safetensors"


def _spec(fixed: Path) -> Target:
    """Return the reader of ``fleet.yaml``, with its expansion to a plan."""
    for name in ("base", "adapters/one", "adapters/two"):
        (fixed / name).mkdir(parents=True)
        (fixed / name / _WEIGHTS).write_text(name)
    table: dict[str, Any] = {
        "bases": {"tiny": {"path": str(fixed / "base"), "labels": ["a"], "task": "fill-mask"}},
        "adapters": [
            {"base": "tiny", "path": f"{fixed}/adapters/*", "exclude": ["one"], "scale": 1.0},
            {"base": "tiny", "path": str(fixed / "adapters/one"), "name": "x", "drop": ["y"]},
        ],
        "variants": [{"mode": "merged", "dtype": "float16", "quantize": "int4"}],
        "targets": ["cpu", "rtx"],
        "gates": {"max_ratio": 1.1, "strict": True},
        "store": "out",
    }
    return Target(
        ({"fleet.yaml": json.dumps(table).encode()},),
        {"fleet.yaml": _JSON},
        lambda folder: plan_fleet(load_fleet(folder / "fleet.yaml"), Silent()),
    )


def _plan(_fixed: Path) -> Target:
    """Return the reader of ``plan.json``, with its sums."""
    none = Estimate(memory_bytes=1, disk_bytes=1, seconds=1.0)
    rows = [
        Row(id=name, kind="adapter", key=key_of(name=name), base="b", variant="v", adapter=name,
            needs=needs, artifact=f"exports/{name}", inputs={"/x": key_of(a=1)},
            job={"recipe": {"base": "x"}}, estimate=none)
        for name, needs in (("one", ()), ("two", ("one",)))
    ]  # fmt: skip
    plan = Plan(tool="0", store="store", rows=tuple(rows))
    return Target(
        ({"plan.json": plan.as_bytes()},),
        {"plan.json": _JSON},
        lambda folder: plan_summary(read_plan(folder / "plan.json")),
    )


def _status(_fixed: Path) -> Target:
    """Return the reader of the report of a store."""
    row = {"id": "a", "kind": "adapter", "status": "failed", "exit_code": 3, "message": "m"}
    table = {"counts": {"failed": 1}, "rows": [row], "running": False, "store": "s"}
    return Target(
        ({"report.json": json.dumps(table).encode()},), {"report.json": _JSON}, _read_report
    )


def _read_report(folder: Path) -> None:
    table = read_status(folder)
    rows = rows_by_id(table)
    changes_between(rows, {"a": {"id": "a", "key": "k", "status": "done"}})
    worst_first(table["rows"])


FLEETS: Final[Mapping[str, Reader]] = {
    "fleet": Reader(_spec, slowness=8),
    "fleet-plan": Reader(_plan),
    "fleet-status": Reader(_status),
}
"""The readers of fleets."""
