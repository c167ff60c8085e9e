"""The report of a fleet: a row for each job, as JSON and as a page of Markdown."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.files import atomic_write_bytes
from lora_export.core.units import size
from lora_export.fleet.next_commands import next_command
from lora_export.fleet.results import log_file
from lora_export.ondevice.printable import json_text, printable_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan, Row
    from lora_export.fleet.results import RowResult, RowState

__all__ = ["REPORT_HTML", "REPORT_JSON", "REPORT_MARKDOWN", "WORST_FIRST", "exit_code_of",
           "report_table", "worst_first", "write_report"]  # fmt: skip

REPORT_JSON: Final = "report.json"
REPORT_MARKDOWN: Final = "report.md"
REPORT_HTML: Final = "report.html"
REPORT_FORMAT: Final = 1
WORST_FIRST: Final = (5, 6, 4, 3, 7, 2, 1)
"""Exit codes, the worst first: what computes wrong before what is slow before what cannot be."""

_MEASURES: Final = {"relative_l2": "{:.2g}", "latency_ratio": "{:.3f}", "gain": "{:.3f}"}
_SHOWN: Final = 200


def report_table(
    plan: Plan,
    states: Mapping[str, RowState],
    results: Mapping[str, RowResult],
    *,
    running: bool,
    source: str = "FLEET.yaml",
    seconds_left: float | None = None,
) -> dict[str, Any]:
    """Return the report as JSON values.

    Args:
        plan: The plan.
        states: The state of each row.
        results: The results of those that have one.
        running: Whether rows are still to come.
        source: The file that was run, for the commands that come next.
        seconds_left: The time that is expected to be left, while it runs.
    """
    rows = [_row(each, states[each.id], results.get(each.id), source) for each in plan.rows]
    return {
        "format_version": REPORT_FORMAT,
        "tool": plan.tool,
        "versions": plan.versions,
        "store": plan.store,
        "source": source,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "running": running,
        "seconds_left": seconds_left,
        "counts": dict(sorted(Counter(states.values()).items())),
        "exit_code": exit_code_of(results[each.id] for each in plan.rows
                                  if states[each.id] == "failed" and each.id in results),
        "targets": list(plan.targets),
        "failures": [row["id"] for row in worst_first(rows)],
        "rows": rows,
    }  # fmt: skip


def worst_first(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that failed, those of the worst exit code first."""
    order = {code: at for at, code in enumerate(WORST_FIRST)}
    failed = [row for row in rows if row["status"] == "failed"]
    return sorted(failed, key=lambda row: (order.get(row["exit_code"], len(order)), row["id"]))


def exit_code_of(failed: Any) -> int:
    """Return the exit code of the worst of the rows that failed; 0 without any.

    Args:
        failed: Their results.
    """
    codes = {each.exit_code for each in failed}
    return next((code for code in WORST_FIRST if code in codes), 1 if codes else 0)


def write_report(store: Path, table: dict[str, Any]) -> None:
    """Write ``report.json`` and ``report.md`` into the store.

    Raises:
        StorageError: The disk refuses.
    """
    atomic_write_bytes(store / REPORT_JSON, f"{json_text(table)}\n".encode())
    atomic_write_bytes(store / REPORT_MARKDOWN, _markdown(table).encode())


def _row(row: Row, state: RowState, result: RowResult | None, source: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": row.id,
        "kind": row.kind,
        "base": row.base,
        "variant": row.variant,
        "adapter": row.adapter,
        "target": row.target,
        "status": state,
        "exit_code": result.exit_code if result is not None and state == "failed" else 0,
        "message": result.message if result is not None and state == "failed" else "",
        "artifact": row.artifact,
        "key": row.key,
    }
    if result is not None and state in {"done", "skipped"}:
        found |= {"verdict": result.verdict, "measures": result.measures, "notes": result.notes}
    if result is not None and state == "failed":
        found["next"] = next_command(row, result, source)
    if result is not None:
        found |= {"seconds": result.seconds, "attempts": result.attempts, "log": log_file(row.key)}
    return found


def _markdown(table: dict[str, Any]) -> str:
    """Return the report as a page: failures first, then adapter by adapter."""
    counts = ", ".join(f"{count} {state}" for state, count in table["counts"].items())
    lines = [
        "# Fleet", "",
        (f"{counts}. {'Still running. ' if table['running'] else ''}{table['date']}, "
        f"lora-export {table['tool']}."), "",
    ]  # fmt: skip
    if failed := worst_first(table["rows"]):
        lines += ["## Failed", "", "| row | exit code | message | next |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(row['id'])} | {row['exit_code']} | {_cell(row['message'])} "
            f"| {_cell(row.get('next') or '')} |"
            for row in failed
        ]
        lines.append("")
    blocked = [row for row in table["rows"] if row["status"] == "blocked"]
    if blocked:
        lines += ["## Blocked", "", *(f"- {_cell(row['id'])}" for row in blocked), ""]
    lines += [
        "## Rows", "",
        "| row | status | verdict | relative L2 | latency ratio | gain | size | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [_line(row) for row in table["rows"]]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    measures = row.get("measures") or {}
    figures = [form.format(measures[name]) if name in measures else "" for name, form in
               _MEASURES.items()]  # fmt: skip
    taken = f"{row['seconds']:.1f}" if "seconds" in row and row["status"] != "skipped" else ""
    bytes_ = size(int(measures["bytes"])) if "bytes" in measures else ""
    cells = [row["id"], row["status"], row.get("verdict") or "", *figures, bytes_, taken]
    return f"| {' | '.join(_cell(each) for each in cells)} |"


def _cell(text: str) -> str:
    return printable_line(text.replace("\n", " "), _SHOWN).replace("|", "\\|")
