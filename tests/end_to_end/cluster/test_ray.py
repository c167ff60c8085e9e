"""Tasks and fleets on a Ray cluster of two nodes; workers die meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.run import ray_executor, run_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.core.errors import MissingRuntimeError
from lora_export.core.progress import Silent
from lora_export.fleet.executors.contract import Answer, Demand
from lora_export.fleet.executors.ray_tasks import RayExecutor
from tests.end_to_end.cluster.conftest import NODE
from tests.helpers.fleet_exports import assert_equal_exports
from tests.helpers.fleets import plan_of, row_of, run_here, tiny_fleet
from tests.helpers.killed_workers import workers_killed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.models import TinyModels

ENTRY = "tests.helpers.cluster_tasks:act"
STORING = "tests.helpers.cluster_tasks:store_row"
ROWS = 24


@pytest.fixture
def executor(cluster: Any) -> Iterator[RayExecutor]:
    """Return an executor of the cluster."""
    found = RayExecutor(cluster.address, ENTRY, resource_seconds=1.0)
    yield found
    found.close()


def answers(executor: RayExecutor, count: int) -> dict[str, Answer]:
    """Return so many answers, by name."""
    found: dict[str, Answer] = {}
    end = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < end
        found |= {each.id: each for each in executor.wait(0.5)}
    return found


def test_tasks_are_answered_and_their_number_is_bounded(executor: RayExecutor) -> None:
    assert executor.free == 8  # twice the processors
    for at in range(8):
        executor.submit(str(at), {"x": at}, Demand(memory_bytes=1 << 40))  # as much as a node has
    assert executor.free == 0
    found = answers(executor, 8)
    assert {int(name): dict(each.table or {})["echo"]["x"] for name, each in found.items()} == {
        at: at for at in range(8)
    }
    assert executor.free == 8


def test_failures_are_told_apart(executor: RayExecutor, tmp_path: Path) -> None:
    executor.submit("died", {"die": str(tmp_path / "mark")}, Demand())
    executor.submit("raised", {"raise": "wrong"}, Demand())
    executor.submit("missing", {"import": "no_such_module"}, Demand())
    executor.submit("nowhere", {}, Demand(target="no-such-device"))
    executor.submit("here", {}, Demand(target="here"))
    executor.submit("late", {"sleep": 30}, Demand(limit_seconds=2.0))
    found = answers(executor, 6)
    assert (found["late"].table, found["late"].late, found["late"].lost) == (None, True, False)
    assert found["died"].lost
    assert found["died"].table is None
    tables = {name: dict(each.table) for name, each in found.items() if each.table}
    assert (tables["raised"]["exit_code"], tables["missing"]["exit_code"]) == (1, 7)
    assert "wrong" in tables["raised"]["message"]
    assert "no_such_module" in tables["missing"]["message"]
    assert tables["nowhere"]["exit_code"] == 7
    assert "target:no-such-device" in tables["nowhere"]["message"]
    assert "echo" in tables["here"]
    executor.submit("died", {"die": str(tmp_path / "mark")}, Demand(attempt=2))
    assert answers(executor, 1)["died"].table is not None


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(MissingRuntimeError, match=r"127\.0\.0\.1:1"):
        RayExecutor("127.0.0.1:1", ENTRY)


def test_killed_workers_change_nothing(
    cluster: Any, tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_EXPORT_SCRATCH", str(tmp_path / "scratch"))
    variants = [{"mode": "merged"}, {"mode": "swappable"}]
    fleet = tiny_fleet(tiny, tmp_path, variants=variants)
    here = run_here(fleet)
    (tmp_path / "out").rename(tmp_path / "whole")
    with workers_killed() as killed:
        plan = plan_fleet(load_fleet(fleet), Silent())
        outcome = run_fleet(plan, executor=ray_executor(cluster.address))
    assert killed, "no worker was killed"
    rows = {row["id"]: row for row in outcome.table["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        name: row["status"] for name, row in here.items() if name != "exit"
    }, [row["message"] for row in rows.values()]
    for mode in ("merged", "swappable"):
        first, second = (tmp_path / each / "exports/tiny" / mode for each in ("whole", "out"))
        assert_equal_exports(first, second)


def test_a_lost_node_loses_no_row(cluster: Any, tmp_path: Path) -> None:
    for name in ("begun", "ended"):
        (tmp_path / name).mkdir()
    job = {"sleep": 1.0, "work": str(tmp_path)}
    rows = [row_of(f"adapter:b/v/a{at}", job=job, adapter=f"a{at}") for at in range(ROWS)]
    plan = plan_of(*rows, store=(tmp_path / "store").as_uri())
    node = cluster.add_node(**NODE)

    def lose() -> None:
        """Kill a node that is at work."""
        end = time.monotonic() + 60
        while not list((tmp_path / "begun").glob(f"*-{node.node_id}-*")):
            assert time.monotonic() < end
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    outcome = run_fleet(plan, executor=RayExecutor(cluster.address, STORING))
    thread.join()
    assert outcome.table["counts"] == {"done": ROWS}, outcome.table["rows"]
    begun, ended = (
        [path.name.split("-")[:2] for path in (tmp_path / name).iterdir()]
        for name in ("begun", "ended")
    )
    assert sorted(key for key, _ in ended) == sorted(row.key for row in rows)  # each once
    lost = {key for key, where in begun if [key, where] not in ended}
    assert lost
    assert {where for key, where in begun if [key, where] not in ended} == {node.node_id}
    assert len(begun) == ROWS + len(lost)
