"""Workers as processes: answers, deaths, replacement, and that none outlives its run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.fleet.executors.contract import Demand
from lora_export.fleet.executors.local import LocalExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.fleet.executors.contract import Answer

WORKER = """
import json, os, signal, sys, time
for line in sys.stdin:
    task = json.loads(line)
    if task.get("kill"):
        os.kill(os.getpid(), task["kill"])
    if "leave" in task:
        sys.exit(task["leave"])
    time.sleep(task.get("sleep", 0))
    print("not an answer", file=sys.stderr)
    print(task.get("raw") or json.dumps({"echo": task, "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    """Return an executor with two workers."""
    found = LocalExecutor([sys.executable, "-c", WORKER], 2, tmp_path / "logs" / "errors")
    yield found
    found.close()


def answers(executor: LocalExecutor, count: int) -> dict[str, Answer]:
    """Return so many answers, by name."""
    found: dict[str, Answer] = {}
    end = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < end
        found |= {each.id: each for each in executor.wait(0.2)}
    return found


def test_a_task_that_takes_too_long_is_stopped_and_no_other(executor: LocalExecutor) -> None:
    executor.submit("long", {"sleep": 60}, Demand(limit_seconds=0.5))
    executor.submit("short", {"sleep": 1}, Demand(limit_seconds=30.0))
    found = answers(executor, 2)
    assert (found["long"].table, found["long"].late) == (None, True)
    assert found["long"].died == "it took longer than 0.5 s and was stopped"
    assert found["short"].table is not None
    executor.submit("next", {"sleep": 0})
    assert answers(executor, 1)["next"].table is not None


def test_tasks_are_answered_side_by_side_by_two_processes(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    assert executor.free == 2
    executor.submit("a", {"x": 1, "sleep": 0.2})
    executor.submit("b", {"x": "ä\n", "sleep": 0.2})
    assert executor.free == 0
    first = answers(executor, 2)
    assert {name: dict(each.table or {})["echo"]["x"] for name, each in first.items()} == {
        "a": 1, "b": "ä\n",
    }  # fmt: skip
    executor.submit("c", {})
    third = answers(executor, 1)["c"]
    pids = [dict(each.table or {})["pid"] for each in (*first.values(), third)]
    assert len(set(pids)) == 2
    assert "not an answer" in (tmp_path / "logs" / "errors").read_text()


@pytest.mark.parametrize(
    ("task", "died", "for_memory"),
    [
        ({"kill": 9}, "SIGKILL", True),
        ({"kill": 11}, "SIGSEGV", False),
        ({"leave": 3}, "code 3", False),
        ({"raw": "no JSON"}, "not JSON", False),
        ({"raw": "[1]"}, "not JSON", False),
    ],
)
def test_a_worker_that_dies_is_reported_and_replaced(
    executor: LocalExecutor, task: dict[str, Any], died: str, *, for_memory: bool
) -> None:
    executor.submit("bad", task)
    answer = answers(executor, 1)["bad"]
    assert answer.table is None
    assert died in answer.died
    assert answer.for_memory is for_memory
    executor.submit("good", {})
    assert answers(executor, 1)["good"].table is not None


def test_closing_stops_what_is_running(tmp_path: Path) -> None:
    executor = LocalExecutor([sys.executable, "-c", WORKER], 1, tmp_path / "errors")
    executor.submit("first", {})
    pid = dict(answers(executor, 1)["first"].table or {})["pid"]
    executor.submit("long", {"sleep": 60})
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_whose_run_was_killed_stops_in_the_middle_of_a_row(tmp_path: Path) -> None:
    """The real worker ends with its stdin, also while it works."""
    script = (
        "import threading, sys, lora_export.commands.fleet.worker as w\n"
        "w.perform = lambda task: threading.Event().wait(60)\n"
        "w.main()\n"
    )
    with (tmp_path / "err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=errors, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"{}\n")
    process.stdin.flush()
    time.sleep(0.5)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(20) == 143
