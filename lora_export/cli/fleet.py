"""``fleet``: the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from lora_export.cli.console import Console
from lora_export.cli.fleet_store import diff, gc, ls, planned
from lora_export.cli.help_format import Command, Group, argument, option
from lora_export.cli.options import common_options, out_option
from lora_export.cli.text import aligned, size
from lora_export.core.files import atomic_write_bytes

__all__ = ["fleet"]

_SHOWN: Final = 10


@click.group(
    cls=Group,
    examples="""
lora-export fleet plan fleet.yaml --dry-run
lora-export fleet run fleet.yaml
lora-export fleet status out
lora-export fleet diff fleet.yaml
lora-export fleet gc fleet.yaml
""",
)
def fleet() -> None:
    """Build many adapters for many targets: one plan, resumable."""


@fleet.command(
    "plan",
    cls=Command,
    examples="""
lora-export fleet plan fleet.yaml --dry-run
lora-export fleet plan fleet.yaml -o plan.json
""",
)
@argument("fleet_file", "The fleet: bases, adapters, variants, targets.", metavar="FLEET",
          type=click.Path(path_type=Path))  # fmt: skip
@out_option("The plan.", type=click.Path(path_type=Path))
@option("--dry-run", section="Output", is_flag=True,
        help="Print the rows and what they will take; write nothing.")  # fmt: skip
@common_options
def plan(
    *, fleet_file: Path, output: Path | None, dry_run: bool, as_json: bool, quiet: bool
) -> int:
    """Expand a fleet to a plan: one row for each thing that is made."""
    from lora_export.commands.fleet.summary import plan_summary

    if output is None and not dry_run:
        msg = "say where the plan goes: -o plan.json, or --dry-run"
        raise click.UsageError(msg)
    with Console(as_json=as_json, quiet=quiet) as console:
        made = planned(fleet_file, console)
        if output is not None and not dry_run:
            atomic_write_bytes(output, made.as_bytes())
        summary = plan_summary(made)
        lines = [] if dry_run or output is None else [f"{output}: {len(made.rows)} rows"]
        lines += _summary_lines(summary)
        lines.append(f"next:   lora-export fleet run {fleet_file if dry_run else output}")
        console.finish({"plan": None if dry_run else str(output), **summary}, lines)
    return 0


@fleet.command(
    "run",
    cls=Command,
    examples="""
lora-export fleet run fleet.yaml
lora-export fleet run plan.json --jobs 4 --max-failures 10
lora-export fleet run fleet.yaml --ray 10.0.0.5:6379
""",
)
@argument("plan_file", "The fleet, or the plan that was made of it.", metavar="PLAN",
          type=click.Path(path_type=Path))  # fmt: skip
@option("--jobs", section="Planning", type=click.IntRange(min=1),
        default_text="as cores and memory allow",
        help="How many rows run side by side.")  # fmt: skip
@option("--only", section="Planning", multiple=True, metavar="ROW",
        help="Run this row and those that it waits for.")  # fmt: skip
@option("--max-failures", section="Gate", type=click.IntRange(min=0), metavar="NUMBER",
        help="Start no more rows once more than this many have failed.")  # fmt: skip
@option("--only-changed", section="Planning", is_flag=True,
        help="Leave rows failed that failed on the same inputs.")  # fmt: skip
@option("--time-limit", "limit_seconds", section="Planning", metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        default_text="an hour, or 30 times its estimate",
        help="Stop a row that takes longer, and try it once more with twice the time.")  # fmt: skip
@option("--ray", section="Planning", metavar="ADDRESS",
        help="Run the rows on a Ray cluster: HOST:PORT, ray://HOST:PORT or auto.")  # fmt: skip
@common_options
def run(
    *,
    plan_file: Path,
    ray: str | None,
    jobs: int | None,
    only: tuple[str, ...],
    max_failures: int | None,
    only_changed: bool,
    limit_seconds: float | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the rows of a fleet; what is in the store already is skipped."""
    from lora_export.commands.fleet.run import ray_executor, run_fleet
    from lora_export.commands.fleet.tool_versions import require_same_versions

    with Console(as_json=as_json, quiet=quiet) as console:
        made = planned(plan_file, console)
        require_same_versions(
            made.tool, made.versions, who="this machine", whole=False,
            hint="Make the plan again: lora-export fleet plan FLEET.yaml -o plan.json",
        )  # fmt: skip
        if only:
            made = made.only(only)
        executor = None if ray is None else ray_executor(ray)
        outcome = run_fleet(
            made, jobs=jobs, max_failures=max_failures, progress=console, executor=executor,
            source=str(plan_file), whole=not only, only_changed=only_changed,
            limit_seconds=limit_seconds,
        )  # fmt: skip
        console.finish(outcome.table, _outcome_lines(outcome.table))
    return outcome.exit_code


@fleet.command("status", cls=Command, examples="lora-export fleet status out")
@argument("store", "The store of the fleet: a directory or a URL.")
@common_options
def status(*, store: str, as_json: bool, quiet: bool) -> int:
    """Show how far a fleet is, while it runs or afterwards."""
    from lora_export.commands.fleet.status import read_status
    from lora_export.fleet.store.open_store import home_of

    with Console(as_json=as_json, quiet=quiet) as console:
        table = read_status(home_of(store))
        console.finish(table, _outcome_lines(table))
    return 0


@fleet.command(
    "fetch",
    cls=Command,
    examples="""
lora-export fleet fetch s3://bucket/fleet -o fleet
lora-export fleet fetch s3://bucket/fleet -o fleet --export roberta/merged
""",
)
@argument("store", "The store of the fleet: a URL or a directory.")
@out_option("The directory of exports and bundles.", type=click.Path(path_type=Path), required=True)
@option("--export", "exports", section="Planning", multiple=True, metavar="BASE/VARIANT",
        default_text="all", help="Fetch this export, with its adapters.")  # fmt: skip
@common_options
def fetch(*, store: str, output: Path, exports: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Fetch what a fleet has made from its store: exports with their adapters, and bundles."""
    from lora_export.commands.fleet.fetch import fetch_fleet

    with Console(as_json=as_json, quiet=quiet) as console:
        found = fetch_fleet(store, output, console, only=exports)
        console.finish(found, [f"{output}: {len(found['made'])} exports and bundles"])
    return 0


fleet.add_command(ls)
fleet.add_command(diff)
fleet.add_command(gc)


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    rows = [["kind", "rows", "in the store", "to do"]]
    rows += [
        [kind, str(each["rows"]), str(each["up_to_date"]), str(each["rows"] - each["up_to_date"])]
        for kind, each in summary["kinds"].items()
    ]
    estimate = summary["estimate"]
    return [
        *aligned(rows),
        (
            f"to do: about {estimate['seconds'] / 3600:.1f} hours of work, "
            f"{size(estimate['disk_bytes'])} on disk, "
            f"{size(estimate['memory_bytes'])} of memory for the largest row"
        ),
        f"a copy of the base for each adapter would be {size(estimate['copies_bytes'])}",
    ]


def _outcome_lines(table: dict[str, Any]) -> list[str]:
    from lora_export.fleet.fleet_report import REPORT_HTML, REPORT_MARKDOWN, worst_first
    from lora_export.fleet.store.open_store import home_of

    counts = ", ".join(f"{count} {state}" for state, count in table["counts"].items())
    left = table.get("seconds_left")
    about = f", about {left / 60:.1f} min left" if left is not None else ""
    lines = [f"{table['store']}: {counts}{f' (running{about})' if table['running'] else ''}"]
    failed = worst_first(table["rows"])
    for row in failed[:_SHOWN]:
        lines.append(f"  failed ({row['exit_code']}): {row['id']}")
        lines += [f"    {line}" for line in row["message"].splitlines()]
        if row.get("next"):
            lines.append(f"    next: {row['next']}")
    if len(failed) > _SHOWN:
        lines.append(f"  and {len(failed) - _SHOWN} more")
    blocked = sum(row["status"] == "blocked" for row in table["rows"])
    if blocked:
        lines.append(f"  blocked, because what they need failed: {blocked} rows")
    report = REPORT_MARKDOWN if table["running"] else REPORT_HTML
    return [*lines, f"report: {home_of(table['store']) / report}"]
