"""A plan of 60,000 adapter and target pairs; rows on Ray: what scheduling costs, what a kill loses.

The environment of ``make test-ray`` (build/cluster) runs the parts with Ray, in a network namespace
that has loopback alone.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import _environment
import _measure

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "fleet_cluster"
BASES, ADAPTERS, ROWS, SLOTS, KILLS, REAL = 10, 1000, 2000, 16, 10, 40
TARGETS = ["cpu", "rtx", "jetson-orin", "jetson-thor", "dgx-spark", "h100"]
METHOD = (
    f"Plan: `lora-export fleet plan` of {BASES} bases with {ADAPTERS:,} adapters each and "
    f"{len(TARGETS)} targets, nothing hashed before. Simulated rows: {ROWS:,} rows that sleep "
    f"(0.55 s, lognormal) and store an artifact, {SLOTS} at a time on a Ray of one node, a worker "
    f"at work killed every two seconds, {KILLS} times; overhead is (time - sum of sleeps / slots) "
    f"* slots / rows, the start of Ray left out. Real rows: {REAL} adapters of a MiniLM, merged, "
    "not verified, from an empty store: on a Ray of one node with two processors against two local "
    "workers, in turns."
)
FLEET = "bases:\n  minilm: {{path: {base}, task: feature-extraction, verify: {{enabled: false}}}}\n"
FLEET += 'adapters:\n  - {{base: minilm, path: "{adapters}/*"}}\nstore: {store}\n'


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=1, short="a tenth of the rows")
    share = 10 if options.short else 1
    with _measure.Session(CLAIM, options, peers=False) as session:
        plans = [plan(session, at, ADAPTERS // share) for at in range(session.repeat)]
        simulated = [
            on_ray(session, "simulate", session.work / f"simulated-{at}", str(ROWS // share),
                   str(SLOTS), str(KILLS // share))
            for at in range(session.repeat)
        ]  # fmt: skip
        ratios, local, cluster = real(session, REAL // share)
        first = simulated[0]
        session.report(
            "A fleet on Ray, and a large plan",
            METHOD,
            {
                "plan": _measure.summarise_runs(plans),
                "local": {"seconds": _measure.summarise(local)},
                "ray": {"seconds": _measure.summarise(cluster)},
            },
            [
                _measure.median_target("plan in s", 20, _measure.walls(plans)),
                _measure.median_target("plan: peak memory in MB", 500, _measure.peaks_mb(plans)),
                _measure.median_target("rows lost", 0, [float(each["lost"]) for each in simulated]),
                _measure.median_target("rows done twice", 0,
                                       [float(each["twice"]) for each in simulated]),
                _measure.median_target("Ray on one node over local", 1.3, ratios),
            ],
            simulated=simulated,
            overhead_ms_a_row=first["overhead_ms_a_row"],
        )  # fmt: skip


def plan(session: _measure.Session, at: int, adapters: int) -> _measure.Run:
    """Plan a fleet of made-up bases and adapters."""
    folder = session.work / f"plan-{at}"
    table: dict[str, object] = {"bases": {}, "adapters": [], "targets": TARGETS, "store": "out"}
    for base in range(BASES):
        session.python(_measure.BENCH / "_fleet_folders.py", folder, str(base), str(adapters))
        table["bases"][f"b{base}"] = {"path": f"base-{base}", "task": "text-classification"}  # type: ignore[index]
        table["adapters"].append({"base": f"b{base}", "path": f"adapters-{base}/*"})  # type: ignore[attr-defined]
    (folder / "fleet.yaml").write_text(json.dumps(table))
    return session.ours("fleet", "plan", folder / "fleet.yaml", "-o", folder / "plan.json")


def real(session: _measure.Session, count: int) -> tuple[list[float], list[float], list[float]]:
    """Run a real fleet locally and on Ray; return ratios and the seconds of each."""
    base = _environment.ROOT / "models" / "all-MiniLM-L6-v2"
    adapters = session.work / "adapters"
    session.python(_measure.BENCH / "_fleet_adapters.py", "make", base, adapters, str(count))
    local, cluster = [], []
    for at in range(session.repeat):
        for kind, seconds in (("local", local), ("ray", cluster)):
            store, fleet = session.work / f"{kind}-{at}", session.work / f"{kind}-{at}.yaml"
            fleet.write_text(FLEET.format(base=base, adapters=adapters, store=store))
            began = time.perf_counter()
            if kind == "local":
                session.ours("fleet", "run", fleet, "--jobs", "2", "--quiet")
                seconds.append(time.perf_counter() - began)
            else:
                found = on_ray(session, "run", fleet, "2")
                assert found["counts"] == {"done": count + 1}, found
                seconds.append(found["seconds"])
    return [b / a for a, b in zip(local, cluster, strict=True)], local, cluster


def on_ray(session: _measure.Session, *words: str | Path) -> dict[str, float]:
    """Return what the script says, run in the environment of ``make test-ray``."""
    python = _environment.ROOT / "build" / "cluster" / "bin" / "python"
    scratch = session.work / "scratch"
    return session.answer(
        ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "--", "env",
         f"LORA_EXPORT_SCRATCH={scratch}", f"LORA_EXPORT_CACHE={session.work / 'cache'}",
         python, _measure.BENCH / "_fleet_ray.py", *words]
    )  # fmt: skip


if __name__ == "__main__":
    main()
