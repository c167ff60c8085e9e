"""The order in which rows of a plan run, and the rows that a failure blocks."""

from __future__ import annotations

from lora_export.fleet.schedule import Schedule
from tests.helpers.fleets import plan_of, row_of

PLAN = plan_of(
    row_of("base"),
    row_of("one", needs=("base",)),
    row_of("two", needs=("base",)),
    row_of("engine", needs=("one",)),
    row_of("bundle", needs=("base",), after=("one", "two")),
)
ROWS = {row.id: row for row in PLAN.rows}


def ready(schedule: Schedule) -> list[str]:
    """Begin all rows that are ready; return their names."""
    names = []
    while (row := schedule.next_ready()) is not None:
        schedule.begin(row)
        names.append(row.id)
    return names


def test_rows_wait_for_those_they_need() -> None:
    schedule = Schedule(PLAN)
    assert ready(schedule) == ["base"]
    assert not ready(schedule)
    schedule.end(ROWS["base"], "done")
    assert ready(schedule) == ["one", "two"]
    schedule.end(ROWS["two"], "done")
    assert not ready(schedule)
    schedule.end(ROWS["one"], "done")
    assert ready(schedule) == ["engine", "bundle"]


def test_a_failure_blocks_what_needs_it_and_nothing_else() -> None:
    schedule = Schedule(PLAN)
    ready(schedule)
    schedule.end(ROWS["base"], "skipped")
    ready(schedule)
    assert [row.id for row in schedule.end(ROWS["one"], "failed")] == ["engine"]
    assert not ready(schedule)
    schedule.end(ROWS["two"], "done")
    assert ready(schedule) == ["bundle"]  # it comes after both, however they end
    assert schedule.states["engine"] == "blocked"


def test_a_failed_base_blocks_everything() -> None:
    schedule = Schedule(PLAN)
    ready(schedule)
    blocked = schedule.end(ROWS["base"], "failed")
    assert sorted(row.id for row in blocked) == ["bundle", "engine", "one", "two"]
    assert not ready(schedule)


def test_a_row_is_outdated_where_one_that_it_waits_for_was_made_anew() -> None:
    schedule = Schedule(PLAN)
    schedule.end(ROWS["base"], "skipped")
    schedule.end(ROWS["one"], "skipped")
    schedule.end(ROWS["two"], "done")
    assert schedule.is_outdated(ROWS["bundle"])
    assert not schedule.is_outdated(ROWS["engine"])


def test_a_row_that_ended_is_not_ready_again() -> None:
    schedule = Schedule(PLAN)
    schedule.end(ROWS["base"], "skipped")
    for name in ("one", "two"):
        schedule.end(ROWS[name], "skipped")
    assert ready(schedule) == ["engine", "bundle"]
    for name in ("engine", "bundle"):
        schedule.end(ROWS[name], "done")
    assert not ready(schedule)
