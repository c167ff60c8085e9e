"""A fleet of 200 adapters on one base against adding them one by one, divided by the cores."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING

import _environment
import _measure

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = "fleet_local"
ADAPTERS = 200
SAMPLE = 20
METHOD = (
    f"{ADAPTERS} adapters of rank 8 on q and v of a MiniLM (22 M parameters), merged, float32, "
    "not verified. Each repetition: one warm process with one thread adds "
    f"{SAMPLE} of them with `lora_export.add`; the median is the time of an add. Then "
    "`lora-export fleet run --jobs CORES` from an empty store: the export of the base is one row, "
    "and the time of the adapters is the rest of the run, the start of its workers included. The "
    f"ideal is {ADAPTERS} times an add over the cores; the share is the ideal over the time of "
    "the adapters."
)
FLEET = """
bases:
  minilm: {{path: {base}, task: feature-extraction, verify: {{enabled: false}}}}
adapters:
  - {{base: minilm, path: "{adapters}/*"}}
store: {store}
"""


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=3)
    script = _measure.BENCH / "_fleet_adapters.py"
    base = _environment.ROOT / "models" / "all-MiniLM-L6-v2"
    cores = len(os.sched_getaffinity(0))
    with _measure.Session(CLAIM, options, peers=False) as session:
        adapters = session.work / "adapters"
        session.python(script, "make", base, adapters, str(ADAPTERS))
        rows: dict[str, list[float]] = {"add": [], "adapters of the fleet": [], "share": []}
        for at in range(session.repeat):
            export = session.work / f"export-{at}"
            taken = session.answer(
                ["env", "OMP_NUM_THREADS=1", sys.executable, script, "add", base, adapters,
                 str(SAMPLE), export]
            )  # fmt: skip
            one = statistics.median(taken["wall"])
            seconds = fleet_seconds(session, base, adapters, at, cores)
            rows["add"].append(one)
            rows["adapters of the fleet"].append(seconds)
            rows["share"].append(ADAPTERS * one / cores / seconds)
        share = rows["share"]
        session.report(
            f"{ADAPTERS} adapters of a MiniLM on one base, {cores} cores",
            METHOD,
            {name: {"value": _measure.summarise(values)} for name, values in rows.items()},
            [
                _measure.Target(
                    "ideal time over the fleet's", "at least", 0.8,
                    round(statistics.median(share), 3),
                    (round(min(share), 3), round(max(share), 3)),
                )
            ],
        )  # fmt: skip


def fleet_seconds(
    session: _measure.Session, base: Path, adapters: Path, at: int, cores: int
) -> float:
    """Run the fleet from nothing; return its time without the row of the base."""
    store, fleet = session.work / f"store-{at}", session.work / f"fleet-{at}.yaml"
    fleet.write_text(FLEET.format(base=base, adapters=adapters, store=store))
    began = time.perf_counter()
    session.ours("fleet", "run", fleet, "--jobs", str(cores), "--quiet")
    whole = time.perf_counter() - began
    table = json.loads((store / "report.json").read_text())
    assert table["counts"] == {"done": ADAPTERS + 1}, table["counts"]
    export = next(row for row in table["rows"] if row["kind"] == "export")
    return whole - float(export["seconds"])


if __name__ == "__main__":
    main()
