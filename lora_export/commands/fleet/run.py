"""``fleet run``: the rows of a plan, run side by side, each skipped where its artifact is there.

    plan → what is done already → ready rows → executor → results, report → exit code

The store has the results by key, so that a run that was stopped goes on where it was: what is done
is skipped, what was begun is begun again. One run at a time has a store.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.away import AwayFromStore
from lora_export.commands.fleet.reporting import Reporting
from lora_export.commands.fleet.row_answers import answer_of_error
from lora_export.commands.fleet.workplaces import InPlace, Workplace
from lora_export.core.errors import LoraExportError, StorageError
from lora_export.core.files import atomic_write_bytes, storage_errors
from lora_export.core.memory import available_bytes
from lora_export.core.progress import Progress, Silent
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.executors.contract import Answer, Demand
from lora_export.fleet.executors.local import LocalExecutor, python_command
from lora_export.fleet.next_commands import again_command
from lora_export.fleet.results import Results, RowResult, result_from
from lora_export.fleet.schedule import Schedule
from lora_export.fleet.store.url import is_url
from lora_export.fleet.store_lock import alone_in

if TYPE_CHECKING:
    from lora_export.fleet.executors.contract import Executor
    from lora_export.fleet.fleet_plan import Plan, Row

__all__ = ["FleetOutcome", "default_jobs", "ray_executor", "run_fleet"]

_WORKER: Final = "lora_export.commands.fleet.worker"
_ENTRY: Final = f"{_WORKER}:perform"
_ATTEMPTS: Final = 2
_LOST_ATTEMPTS: Final = 5
_WAIT_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 3600.0
_LONGEST_FACTOR: Final = 30.0
"""Without a limit that the user gives, a row has an hour, or thirty times its estimate."""

_MINUTE: Final = 60.0
_LASTING: Final = frozenset({3, 4, 5, 6})
_PASSING: Final = frozenset({"StorageError", "MemoryError", "WorkerDied"})
"""Errors that another run may not have, though nothing that a row reads has changed."""


@dataclass(frozen=True)
class FleetOutcome:
    """The result of a run.

    Attributes:
        table: The report, as in ``report.json``.
        exit_code: 0, or the code of the worst row.
    """

    table: dict[str, Any]
    exit_code: int


@dataclass
class _Run:
    """A run under way."""

    plan: Plan
    place: Workplace
    results: Results
    schedule: Schedule
    progress: Progress
    reporting: Reporting
    max_failures: int | None = None
    limit_seconds: float | None = None
    keys: dict[str, str] = field(default_factory=dict)
    kept: dict[str, RowResult] = field(default_factory=dict)
    """Results of earlier runs whose artifacts are whole."""
    failed_before: dict[str, RowResult] = field(default_factory=dict)
    """Results of rows that would fail again, as nothing that they read has changed."""
    found: dict[str, RowResult] = field(default_factory=dict)
    failures: int = 0
    """The rows that have failed in this run."""
    attempts: dict[str, int] = field(default_factory=dict)
    again: list[Row] = field(default_factory=list)
    """Rows whose worker was lost, and that are tried again."""
    alone: list[Row] = field(default_factory=list)
    """Rows that were killed for memory, and that are tried again with nothing beside them."""


def default_jobs(plan: Plan) -> int:
    """Return how many rows run side by side: as cores and memory allow."""
    cores = os.cpu_count() or 1
    most = max((row.estimate.memory_bytes for row in plan.rows), default=0)
    free = available_bytes()
    if not most or free is None:
        return cores
    return max(1, min(cores, free // most))


def ray_executor(address: str) -> Executor:
    """Return the executor of a Ray cluster.

    Raises:
        MissingRuntimeError: Ray is not installed, or no cluster answers.
    """
    from lora_export.fleet.executors.ray_tasks import RayExecutor

    return RayExecutor(address, _ENTRY)


def run_fleet(
    plan: Plan,
    *,
    jobs: int | None = None,
    max_failures: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    source: str = "FLEET.yaml",
    whole: bool = True,
    only_changed: bool = False,
    limit_seconds: float | None = None,
) -> FleetOutcome:
    """Run the rows of a plan; a row that fails never stops the others.

    Args:
        plan: The plan.
        jobs: How many rows run side by side; as cores and memory allow, by default.
        max_failures: The run ends when more rows than that have failed.
        executor: Where rows run; processes of this machine by default.
        progress: Told which rows end, and how.
        source: The file that is run, for the commands in its report.
        whole: Whether the plan is the whole fleet, and not some of its rows.
        only_changed: Whether rows that failed stay failed, unless their inputs have changed or
            what ended them may be gone: memory, a disk, a library that was not installed.
        limit_seconds: A row that takes longer is stopped, and tried again once with twice the
            time; an hour or thirty times the row's estimate, by default.

    Raises:
        UsageError: Another run has the store.
        StorageError: The store cannot be written.
    """
    say = progress or Silent()
    away = is_url(plan.store) or (executor is not None and executor.is_away)
    place: Workplace = AwayFromStore(plan, say.note) if away else InPlace(Path(plan.store))
    with storage_errors(str(place.home)):
        (place.home / FLEET_FOLDER).mkdir(parents=True, exist_ok=True)
    with alone_in(place.home):
        reporting = Reporting(place.home, plan, source, whole)
        results = Results(place.home)
        run = _Run(plan, place, results, Schedule(plan), say, reporting, max_failures)
        run.limit_seconds = limit_seconds
        run.keys = {row.id: row.key for row in plan.rows}
        run.kept = place.kept(plan, results, say.note)
        run.failed_before = _failed_before(run) if only_changed else {}
        own = executor or LocalExecutor(
            python_command(_WORKER),
            jobs or default_jobs(plan),
            place.home / FLEET_FOLDER / "workers.log",
        )
        try:
            _run(run, own)
        finally:
            own.close()
            run.schedule.stop()
            table = reporting.finish(run.schedule.states, run.found)
        place.finish(_good_rows(run), whole=whole)
    return FleetOutcome(table, int(table["exit_code"]))


def _failed_before(run: _Run) -> dict[str, RowResult]:
    """Return the results of rows that failed for what they read or compute."""
    results = ((row.id, run.results.read(row)) for row in run.plan.rows)
    return {
        name: result
        for name, result in results
        if result is not None
        and result.status == "failed"
        and result.exit_code in _LASTING
        and result.kind not in _PASSING
    }


def _good_rows(run: _Run) -> list[Row]:
    """Return the rows that have succeeded by now, in the order of the plan."""
    return [row for row in run.plan.rows if run.schedule.is_good(row.id)]


def _run(run: _Run, executor: Executor) -> None:
    """Hand rows to the executor until none is left, or too many have failed."""
    running: dict[str, Row] = {}
    total = len(run.plan.rows)
    while True:
        if not _is_stopped(run):
            _hand_over(run, executor, running)
        if not running and not run.again:
            return
        for answer in executor.wait(_WAIT_SECONDS):
            row = running.pop(answer.id)
            _take(run, row, answer)
            _tell(run, row, run.schedule.ended, total)
        run.reporting.update(run.schedule.states, run.found)


def _hand_over(run: _Run, executor: Executor, running: dict[str, Row]) -> None:
    """Start what can be started; a row that needs all memory waits until nothing else runs."""
    if run.alone:
        if not running:
            _submit(run, executor, running, run.alone.pop())
        return
    while run.again and executor.free > 0:
        _submit(run, executor, running, run.again.pop(0))
    while (row := run.schedule.next_ready()) is not None:
        kept = run.kept.get(row.id)
        if kept is not None and not run.schedule.is_outdated(row):
            run.found[row.id] = kept
            run.schedule.end(row, "skipped")
            continue
        lost = run.failed_before.get(row.id)
        if lost is not None and not run.schedule.is_outdated(row):
            run.found[row.id] = lost
            run.schedule.end(row, "failed")
            continue
        if executor.free < 1:
            return
        run.schedule.begin(row)
        _submit(run, executor, running, row)


def _submit(run: _Run, executor: Executor, running: dict[str, Row], row: Row) -> None:
    run.attempts[row.id] = run.attempts.get(row.id, 0) + 1
    attempt = run.attempts[row.id]
    try:
        done = run.place.landed(row) if attempt > 1 else None
        task = {} if done is not None else run.place.task(row, run.results, run.schedule.is_good)
    except LoraExportError as error:
        done = answer_of_error(error)
    if done is not None:
        _take(run, row, Answer(row.id, done))
        _tell(run, row, run.schedule.ended, len(run.plan.rows))
        return
    running[row.id] = row
    if run.place.is_away:
        task["provenance"] = _provenance(run, row)
    estimate, target = row.estimate, row.target if row.kind == "engine" else None
    limit = run.limit_seconds or max(_LONGEST_SECONDS, _LONGEST_FACTOR * estimate.seconds)
    demand = Demand(
        estimate.memory_bytes, estimate.seconds, target, attempt, limit_seconds=limit * attempt
    )
    executor.submit(row.id, task, demand)


def _take(run: _Run, row: Row, answer: Answer) -> None:
    """Keep what came of a row; try again what memory or a dead worker ended."""
    attempts = run.attempts[row.id]
    died = answer.table is None
    for_memory = answer.for_memory or (answer.table or {}).get("kind") == "MemoryError"
    if attempts < (_LOST_ATTEMPTS if answer.lost else _ATTEMPTS if answer.late else 0):
        run.progress.note(f"{row.id} is tried again: {answer.died}")
        run.again.append(row)
        return
    if (died or for_memory) and not (answer.lost or answer.late) and attempts < _ATTEMPTS:
        run.progress.note(f"{row.id} is tried again alone: {answer.died or 'memory'}")
        run.alone.append(row)
        return
    if answer.table is None:
        table: dict[str, Any] = {
            "status": "failed",
            "message": f"{answer.died}, {attempts} times; see {run.results.log_of(row)}"
            + ("\nGive it more time: --time-limit SECONDS" if answer.late else ""),
            "kind": "WorkerDied",
            "exit_code": StorageError.exit_code if for_memory else 1,
        }
    else:
        table = dict(answer.table)
    _write_log(run, row, table.pop("log", None))
    origin = _provenance(run, row)
    result = result_from({**table, "attempts": attempts, "provenance": origin}, row)
    run.results.write(result)
    run.found[row.id] = result
    run.failures += result.status == "failed"
    run.schedule.end(row, result.status)


def _write_log(run: _Run, row: Row, text: str | None) -> None:
    """Keep the log that a worker far away sent with its answer."""
    if text is not None:
        path = run.results.log_of(row)
        with storage_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, text.encode(errors="backslashreplace"))


def _provenance(run: _Run, row: Row) -> dict[str, Any]:
    """Return what a row is made of, and how: see `Provenance`."""
    return {
        **{name: getattr(row, name) for name in ("id", "kind", "base", "variant", "adapter",
                                                 "target", "artifact", "inputs")},
        "needs": {name: run.keys[name] for name in (*row.needs, *row.after)},
        "tool": run.plan.tool,
        "versions": run.plan.versions,
        "command": again_command(row, run.reporting.source),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _tell(run: _Run, row: Row, done: int, total: int) -> None:
    state = run.schedule.states[row.id]
    result = run.found.get(row.id)
    if state == "running" or result is None:
        return
    left = run.reporting.left
    end = f", about {left / 60:.0f} min left" if left is not None and left > _MINUTE else ""
    line = f"[{done}/{total}{end}] {state} {row.id} ({result.seconds:.1f} s)"
    if result.message:
        line += f": {result.message.splitlines()[0]}"
    run.progress.note(line)


def _is_stopped(run: _Run) -> bool:
    """Return whether more rows have failed than may."""
    return run.max_failures is not None and run.failures > run.max_failures
