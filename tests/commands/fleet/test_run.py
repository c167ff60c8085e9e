"""The run of a plan: what is skipped, tried again, blocked, and said at the end.

The executor is a double that does tasks in this process; the rows do nothing.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.fleet.run import FleetOutcome, run_fleet
from lora_export.commands.fleet.status import read_status
from lora_export.core.errors import InputError, UsageError
from lora_export.core.files import sha256_of_file
from lora_export.fleet.fleet_plan import Estimate
from tests.helpers.fleets import InlineExecutor, plan_of, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan

Perform = "Callable[[Mapping[str, Any]], dict[str, Any] | None]"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Return a plan of two chains."""
    return plan_of(
        row_of("one", kind="bundle", artifact="one"),
        row_of("two", kind="bundle", artifact="two", needs=("one",)),
        row_of("three", kind="bundle", artifact="three"),
        store=tmp_path / "store",
    )


def writes(task: Mapping[str, Any]) -> dict[str, Any]:
    """Write the artifact of a row."""
    from pathlib import Path

    path = Path(task["store"]) / task["row"]["artifact"]
    path.write_text(task["row"]["id"])
    return {"status": "done", "files": {task["row"]["artifact"]: sha256_of_file(path)}}


def run(plan: Plan, perform: Any = writes, **settings: Any) -> tuple[FleetOutcome, list[str]]:
    """Run a plan; return the outcome and the names of the rows that were done."""
    executor = InlineExecutor(perform)
    outcome = run_fleet(plan, executor=executor, **settings)
    assert executor.closed
    return outcome, executor.done


def states(outcome: FleetOutcome) -> dict[str, str]:
    """Return the states of rows by name."""
    return {row["id"]: row["status"] for row in outcome.table["rows"]}


def failing(code: int, *names: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a function that fails for rows of these names, and else writes."""

    def perform(task: Mapping[str, Any]) -> dict[str, Any]:
        if task["row"]["id"] in names:
            return {"status": "failed", "exit_code": code, "message": "bad\nhint", "kind": "X"}
        return writes(task)

    return perform


def test_what_is_there_is_skipped(plan: Plan) -> None:
    first, done = run(plan)
    assert (first.exit_code, sorted(done)) == (0, ["one", "three", "two"])
    second, done = run(plan)
    assert (second.exit_code, done) == (0, [])
    assert set(states(second).values()) == {"skipped"}


def test_what_is_damaged_is_made_again_with_all_that_needs_it(plan: Plan, tmp_path: Path) -> None:
    run(plan)
    (tmp_path / "store" / "one").write_text("damage")
    second, done = run(plan)
    assert done == ["one", "two"]
    assert states(second)["three"] == "skipped"
    (tmp_path / "store" / "three").unlink()
    assert run(plan)[1] == ["three"]


def test_another_key_is_made_anew(plan: Plan) -> None:
    run(plan)
    changed = plan.rows[2].model_copy(update={"key": "f" * 64})
    other = plan.model_copy(update={"rows": (*plan.rows[:2], changed)})
    assert run(other)[1] == ["three"]


def test_a_failure_blocks_what_needs_it_and_is_tried_again_by_the_next_run(plan: Plan) -> None:
    first, _ = run(plan, failing(4, "one"))
    assert states(first) == {"one": "failed", "two": "blocked", "three": "done"}
    assert first.exit_code == 4
    row = first.table["rows"][0]
    assert (row["exit_code"], row["message"]) == (4, "bad\nhint")
    second, done = run(plan)
    assert (second.exit_code, done) == (0, ["one", "two"])


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((3, 4), 4), ((6, 4), 6), ((3, 5), 5), ((5, 6), 5), ((7, 3), 3), ((1, 7), 7), ((1, 1), 1)],
)
def test_the_exit_code_is_that_of_the_worst_row(
    plan: Plan, codes: tuple[int, int], expected: int
) -> None:
    table = dict(zip(("one", "three"), codes, strict=True))

    def perform(task: Mapping[str, Any]) -> dict[str, Any]:
        return {"status": "failed", "exit_code": table[task["row"]["id"]], "message": "m"}

    assert run(plan, perform)[0].exit_code == expected


def test_what_memory_ended_is_tried_again_alone(plan: Plan) -> None:
    tries: Counter[str] = Counter()
    beside: list[int] = []

    def perform(task: Mapping[str, Any]) -> dict[str, Any] | None:
        name = task["row"]["id"]
        tries[name] += 1
        if name == "one":
            beside.append(2 - executor.free)
            if tries[name] == 1:
                return None
        return writes(task)

    executor = InlineExecutor(perform)
    outcome = run_fleet(plan, executor=executor)
    assert outcome.exit_code == 0
    assert tries == {"one": 2, "two": 1, "three": 1}
    assert beside[1] == 0  # nothing else had been handed over


def test_what_dies_twice_has_failed_with_the_place_of_its_log(plan: Plan) -> None:
    outcome, done = run(plan, lambda task: None if task["row"]["id"] == "one" else writes(task))
    assert done.count("one") == 2
    row = outcome.table["rows"][0]
    assert (row["status"], row["exit_code"]) == ("failed", 3)
    assert "SIGKILL" in row["message"]
    assert ".log" in row["message"]


@pytest.mark.parametrize(("seconds", "status", "times"), [(9.0, "done", 1), (19.0, "done", 2),
                                                          (21.0, "failed", 2)])  # fmt: skip
def test_a_row_has_twice_its_time_when_it_is_tried_again(
    seconds: float, status: str, times: int, plan: Plan
) -> None:
    def perform(task: Mapping[str, Any]) -> dict[str, Any] | float:
        return seconds if task["row"]["id"] == "one" else writes(task)

    outcome, done = run(plan, perform, limit_seconds=10.0)
    assert done.count("one") == times
    row = outcome.table["rows"][0]
    assert row["status"] == status
    assert states(outcome)["three"] == "done"
    if status == "failed":
        assert row["message"].startswith("it took longer than 20 s and was stopped, 2 times; see ")
        assert "--time-limit" in row["message"]
        assert outcome.exit_code == 1


def test_without_a_limit_a_row_has_an_hour_or_thirty_times_its_estimate(tmp_path: Path) -> None:
    slow = Estimate(memory_bytes=0, disk_bytes=0, seconds=200.0)
    rows = [row_of("short"), row_of("long", estimate=slow)]
    plan = plan_of(*rows, store=tmp_path / "store")
    outcome, done = run(plan, lambda task: 6001.0 if task["row"]["id"] == "long" else 3599.0)
    assert states(outcome) == {"short": "done", "long": "done"}
    assert done == ["short", "long", "long"]


def test_bad_input_is_not_tried_again(plan: Plan) -> None:
    assert run(plan, failing(3, "one"))[1].count("one") == 1


def test_a_run_ends_where_too_many_rows_have_failed(tmp_path: Path) -> None:
    rows = [row_of(f"r{at}", kind="bundle", artifact=f"r{at}") for at in range(20)]
    many = plan_of(*rows, store=tmp_path / "store")
    outcome, done = run(many, failing(3, *(row.id for row in rows)), max_failures=2)
    assert outcome.exit_code == 3
    assert len(done) < 6
    assert Counter(states(outcome).values())["waiting"] == 20 - len(done)


def test_a_store_has_one_run_at_a_time(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "store" / ".fleet").mkdir(parents=True)
    with (tmp_path / "store" / ".fleet" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run"):
            run(plan)


def test_the_report_is_that_of_every_moment(plan: Plan, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def perform(task: Mapping[str, Any]) -> dict[str, Any]:
        if (tmp_path / "store" / "report.json").exists():
            seen.append(read_status(tmp_path / "store"))
        return writes(task)

    outcome, _ = run(plan, perform)
    assert seen[0]["running"]
    assert seen[0]["counts"]["done"] == 1
    final = read_status(tmp_path / "store")
    assert final == json.loads(json.dumps(outcome.table))
    assert not final["running"]
    assert "3 done" in (tmp_path / "store" / "report.md").read_text()


def test_an_interrupt_leaves_a_report_and_what_was_done(plan: Plan, tmp_path: Path) -> None:
    def perform(task: Mapping[str, Any]) -> dict[str, Any]:
        if task["row"]["id"] == "three":
            raise KeyboardInterrupt
        return writes(task)

    executor = InlineExecutor(perform)
    with pytest.raises(KeyboardInterrupt):
        run_fleet(plan, executor=executor)
    assert executor.closed
    assert read_status(tmp_path / "store")["counts"] == {"done": 1, "waiting": 2}
    assert sorted(run(plan)[1]) == ["three", "two"]


@pytest.mark.parametrize("raw", ["{}", "[]", "{", '{"rows": 1}'])
def test_a_status_of_something_else_is_refused(raw: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(raw)
    with pytest.raises(InputError):
        read_status(tmp_path)


def test_only_what_changed_is_tried_again(plan: Plan) -> None:
    run(plan, failing(5, "one"))
    again, done = run(plan, only_changed=True)
    assert (again.exit_code, done) == (5, [])
    assert states(again) == {"one": "failed", "two": "blocked", "three": "skipped"}
    assert again.table["rows"][0]["message"] == "bad\nhint"
    changed = plan.rows[0].model_copy(update={"key": "e" * 64})
    other = plan.model_copy(update={"rows": (changed, *plan.rows[1:])})
    assert run(other, only_changed=True)[1] == ["one", "two"]


def test_what_another_run_may_not_have_is_tried_again_though_nothing_changed(
    plan: Plan, tmp_path: Path
) -> None:
    run(plan, failing(7, "three"))  # a library that was not installed
    assert run(plan, only_changed=True)[1] == ["three"]
    (tmp_path / "store" / "one").unlink()
    run(plan, lambda task: None if task["row"]["id"] == "one" else writes(task))  # memory
    assert run(plan, only_changed=True)[1] == ["one", "two"]


def test_a_failure_of_an_earlier_run_is_none_of_the_failures_that_may_be(plan: Plan) -> None:
    run(plan, failing(5, "one"))
    changed = plan.rows[2].model_copy(update={"key": "e" * 64})
    other = plan.model_copy(update={"rows": (*plan.rows[:2], changed)})
    assert run(other, only_changed=True, max_failures=0)[1] == ["three"]


def test_the_report_names_the_next_command_and_what_changed(plan: Plan, tmp_path: Path) -> None:
    first, _ = run(plan, failing(3, "one"), source="my fleet.yaml")
    assert first.table["changes"] is None
    assert first.table["failures"] == ["one"]
    assert first.table["rows"][0]["next"] == ("lora-export fleet run 'my fleet.yaml' --only one")
    assert (tmp_path / "store" / first.table["rows"][0]["log"]).parent.name == "logs"
    second, _ = run(plan)
    assert second.table["changes"]["mended"] == ["one", "two"]
    page = (tmp_path / "store" / "report.html").read_text()
    assert "Failed before, and does not any more" in page
