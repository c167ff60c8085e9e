"""Rows of a fleet on a Ray of one node, as JSON; run in a network of its own by `fleet_cluster.py`.

Usage: python _fleet_ray.py simulate WORK COUNT SLOTS KILLS
       python _fleet_ray.py run FLEET CORES
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.run import ray_executor, run_fleet
from lora_export.fleet.executors.ray_tasks import RayExecutor
from lora_export.fleet.fleet_plan import Estimate, Plan, Row, key_of
from lora_export.fleet.store.open_store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.commands.fleet.run import FleetOutcome
    from lora_export.fleet.executors.contract import Executor

_EACH: Final = 250
"""Adapters of a simulated export."""
_SEED: Final = 27
_KILL_SECONDS: Final = 2.0


def main() -> None:
    what, *rest = sys.argv[1:]
    print(json.dumps(simulate(*rest) if what == "simulate" else run(*rest)))


def simulate(work: str, count: str, slots: str, kills: str) -> dict[str, Any]:
    """Run rows that sleep, and kill a worker at work now and then."""
    plan = simulated_plan(Path(work), int(count))
    head = start(int(slots))
    stop, killed = threading.Event(), []
    thread = threading.Thread(target=kill_workers, args=(stop, int(kills), killed))
    thread.start()
    outcome, seconds = timed(plan, RayExecutor(head, "_fleet_ray:sleep_row"))
    stop.set()
    thread.join()
    begun = [path.name.partition("-")[0] for path in (Path(work) / "begun").iterdir()]
    ended = [path.name.partition("-")[0] for path in (Path(work) / "ended").iterdir()]
    ideal = sum(row.job["sleep"] for row in plan.rows) / int(slots)
    return {
        "rows": len(plan.rows),
        "seconds": seconds,
        "ideal_seconds": ideal,
        "overhead_ms_a_row": 1e3 * (seconds - ideal) * int(slots) / len(plan.rows),
        "counts": outcome.table["counts"],
        "killed": len(killed),
        "begun": len(begun),
        "lost": len({row.key for row in plan.rows} - set(ended)),
        "twice": len(ended) - len(set(ended)),
    }


def simulated_plan(work: Path, count: int) -> Plan:
    """Return a plan of exports with adapters, each of which sleeps about half a second.

    An adapter of a MiniLM takes 5.5 s on two cores by the estimates; here it is a tenth of that,
    with a lognormal spread.
    """
    chance = random.Random(_SEED)
    (work / "begun").mkdir(parents=True)
    (work / "ended").mkdir()
    estimate = Estimate(memory_bytes=1 << 20, disk_bytes=0, seconds=0.5)
    rows: list[Row] = []
    for at in range(count):
        base = f"b{at // _EACH}"
        first = at % _EACH == 0
        name = f"export:{base}/v" if first else f"adapter:{base}/v/a{at}"
        job = {"sleep": 0.55 * chance.lognormvariate(0.0, 0.3), "work": str(work)}
        rows.append(
            Row(
                id=name, kind="export" if first else "adapter", key=key_of(name=name), base=base,
                variant="v", adapter=None if first else f"a{at}",
                needs=() if first else (f"export:{base}/v",), artifact=f"exports/{base}/v",
                job=job, estimate=estimate,
            )
        )  # fmt: skip
    return Plan(tool="0", store=f"file://{work}/store", rows=tuple(rows))


def sleep_row(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do a row: sleep, and store a file as its artifact."""
    row, mark = task["row"], uuid.uuid4().hex
    work = Path(row["job"]["work"])
    (work / "begun" / f"{row['key']}-{mark}").touch()
    time.sleep(row["job"]["sleep"])
    folder = work / "made" / mark
    folder.mkdir(parents=True)
    (folder / "made").write_text(row["id"])
    about = {"status": "done", "run": task["run"], "mode": "merged"}
    open_store(task["store"]).put(
        row["key"], folder, ["made"], kind=row["kind"], name=row["id"], about=about
    )
    (work / "ended" / f"{row['key']}-{mark}").touch()
    return {"status": "done", "seconds": row["job"]["sleep"]}


def kill_workers(stop: threading.Event, most: int, killed: list[int]) -> None:
    """Kill a worker that is at work, every two seconds, so many times."""
    import psutil

    chance = random.Random(_SEED)
    while len(killed) < most and not stop.wait(_KILL_SECONDS):
        found = [
            each.pid for each in psutil.process_iter(["cmdline"])
            if (each.info["cmdline"] or [""])[0].startswith(("ray::export:", "ray::adapter:"))
        ]  # fmt: skip
        if found:
            killed.append(chance.choice(found))
            os.kill(killed[-1], signal.SIGKILL)


def run(fleet: str, cores: str) -> dict[str, Any]:
    """Run a real fleet on a Ray of one node with so many processors."""
    from lora_export.commands.fleet.expand import plan_fleet
    from lora_export.commands.fleet.spec import load_fleet
    from lora_export.core.progress import Silent

    plan = plan_fleet(load_fleet(fleet), Silent())
    outcome, seconds = timed(plan, ray_executor(start(int(cores))))
    return {"seconds": seconds, "counts": outcome.table["counts"]}


def timed(plan: Plan, executor: Executor) -> tuple[FleetOutcome, float]:
    """Run a plan; return the outcome and the seconds."""
    began = time.perf_counter()
    outcome = run_fleet(plan, executor=executor)
    return outcome, time.perf_counter() - began


def start(processors: int) -> str:
    """Start a Ray of one node; return its address."""
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": processors, "memory": 16 << 30, "object_store_memory": 80 << 20,
            "include_dashboard": False,
        },
    )  # fmt: skip
    return str(found.address)


if __name__ == "__main__":
    main()
