"""The latency gate's error rates: on recorded, simulated and real timings of a loaded machine.

    python bench/gate.py                       trials on all three; bench/results/gate.json
    python bench/gate.py --record FILE         record timings anew (tests/data/timings.json)

A trial is what `lora-export bench --max-ratio 1.05` does: 50 rounds, looked at, doubled while the
judgement is open. Equals should pass, and a graph that takes a tenth longer should fail.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _measure

sys.path.insert(0, str(_measure.BENCH.parent))  # for the tests' timings

if TYPE_CHECKING:
    from collections.abc import Callable

CLAIM: Final = "gate"
LIMIT: Final = 1.05
SLOW: Final = 1.10
ROUNDS: Final = 50
MOST: Final = 6400
RECORDED: Final = 2000
SOURCES: Final = "recorded,simulated,real"
METHOD: Final = (
    "Each trial judges as `bench` does: at 50 rounds, and at twice as many while the judgement is "
    "open, up to 6400; the looks share the 5 % of error. Recorded: blocks of 50 rounds drawn from "
    "tests/data/timings.json (one graph in two sessions, two threads, two cores that ran other "
    "work besides), the slow graph's times multiplied. Simulated: tests/helpers/timings.py. Real: "
    "one graph in two sessions, one thread, beside two processes that are busy and idle in turns; "
    "the slow one spins for a tenth of its own time after each run."
)


def busy() -> None:
    """Take a processor."""
    while True:
        sum(range(10_000))


def bursts(seed: int) -> None:
    """Take a processor half of the time, for 0.15 s on average."""
    draws = random.Random(seed)
    while True:
        end = time.monotonic() + draws.expovariate(1 / 0.15)
        while time.monotonic() < end:
            sum(range(10_000))
        time.sleep(draws.expovariate(1 / 0.15))


LOADS: Final[dict[str, tuple[tuple[Callable[..., None], tuple[int, ...]], ...]]] = {
    "shared": (),
    "steady": ((busy, ()), (busy, ())),
    "bursts": ((bursts, (1,)), (bursts, (2,))),
}


class Load:
    """Processes beside the measurement, while the block lasts."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = [
            context.Process(target=what, args=arguments, daemon=True)
            for what, arguments in LOADS[name]
        ]

    def __enter__(self) -> None:
        for process in self._processes:
            process.start()

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def runs(work: Path, *, rows: int, layers: int, threads: int) -> list[Callable[[], None]]:
    """Return one graph in two sessions: `layers` pairs of 384 x 1536 matrix products."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from lora_export.runtime.bound import BoundRun
    from lora_export.runtime.ort import CPU, open_session

    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for at, shape in enumerate([(384, 1536), (1536, 384)] * layers):
        numbers = generator.standard_normal(shape, np.float32) / np.sqrt(shape[0], dtype=np.float32)
        weights.append(numpy_helper.from_array(numbers, f"w{at}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{at}"], [f"y{at}"]))
        nodes.append(helper.make_node("Tanh", [f"y{at}"], [f"t{at}"]))
        value = f"t{at}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 384]) for name in ("x", value)
    ]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 20)]
    path = work / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    feeds = {"x": generator.standard_normal((rows, 384), np.float32)}
    return [BoundRun(open_session(path, threads=threads), CPU, feeds) for _ in range(2)]


def spinning(run: Callable[[], object]) -> Callable[[], None]:
    """Return a run that takes a tenth longer than `run`."""

    def slow() -> None:
        start = time.perf_counter_ns()
        run()
        end = time.perf_counter_ns()
        until = end + (SLOW - 1) * (end - start)
        while time.perf_counter_ns() < until:
            pass

    return slow


def record(work: Path) -> dict[str, Any]:
    """Record one graph in two sessions under each load, in units of 10 µs."""
    import numpy as np

    from lora_export.ondevice.judge.timing import Interleaved

    one, two = runs(work, rows=24, layers=4, threads=0)
    found: dict[str, Any] = {}
    for name in LOADS:
        with Load(name):
            measurement = Interleaved({"one": one, "two": two}, seed=3)
            measurement.warm_up()
            measurement.extend(RECORDED)
        table = np.array(list(measurement.times_ms.values()))
        found[name] = np.round(table * 100).astype(int).tolist()
    return found


class Trial:
    """One measurement and its judgement, by the code of `bench`."""

    def __init__(self) -> None:
        from lora_export.latency.gate import Judge
        from lora_export.latency.points import Point

        self._point = Point("forward", 1, 1)
        self._judge = Judge(LIMIT, [("new", "base")], against="the base", seed=0)

    def is_open(self, base: Any, new: Any, looks: int) -> bool:
        """Look at the times of now."""
        return self._judge.is_open(self._point, {"base": base, "new": new}, looks)

    @property
    def outcome(self) -> tuple[str, int]:
        """The verdict, and after how many rounds."""
        (row,) = self._judge.gate().rows
        return row.verdict, row.rounds


def judged(times: Any) -> tuple[str, int]:
    """Judge times that are there."""
    from lora_export.ondevice.judge.ratios import look_rounds

    trial, stops = Trial(), look_rounds(ROUNDS, MOST)
    for stop in stops:
        if not trial.is_open(times[0, :stop], times[1, :stop], len(stops)):
            break
    return trial.outcome


def measured(base: Callable[[], object], new: Callable[[], object], seed: int) -> tuple[str, int]:
    """Judge times while they are taken."""
    from lora_export.ondevice.judge.ratios import look_rounds
    from lora_export.ondevice.judge.timing import Interleaved

    measurement = Interleaved({"base": base, "new": new}, seed=seed)
    trial, stops = Trial(), look_rounds(ROUNDS, MOST)
    for stop in stops:
        measurement.extend(stop - measurement.rounds)
        if not trial.is_open(*measurement.times_ms.values(), len(stops)):
            break
    return trial.outcome


def summary(outcomes: list[tuple[str, int]], wanted: str) -> dict[str, Any]:
    """Return the share of trials with each verdict, and how many rounds they took."""
    verdicts = [verdict for verdict, _ in outcomes]
    return {
        "trials": len(outcomes),
        "wanted": wanted,
        "share": round(verdicts.count(wanted) / len(outcomes), 4),
        "verdicts": {each: verdicts.count(each) for each in ("pass", "ambiguous", "fail")},
        "rounds": _measure.summarise([float(rounds) for _, rounds in outcomes]),
    }


def trials(count: int, work: Path, wanted_sources: list[str]) -> dict[str, dict[str, Any]]:
    """Run the trials of some sources; return their summaries by name."""
    from tests.helpers.timings import LOADS as RECORDINGS
    from tests.helpers.timings import NOISES, recorded, simulated

    found: dict[str, dict[str, Any]] = {}
    for truth, what, wanted in ((1.0, "equal", "pass"), (SLOW, "a tenth slower", "fail")):
        for source, make, kinds in (
            ("recorded", recorded, RECORDINGS),
            ("simulated", simulated, NOISES),
        ):
            for kind in kinds if source in wanted_sources else ():
                print(f"{CLAIM}: {source}, {kind}, {what}", file=sys.stderr)
                outcomes = [
                    judged(make(kind, MOST, seed=1000 + seed, ratio=truth)) for seed in range(count)
                ]
                found[f"{source}, {kind}, {what}"] = summary(outcomes, wanted)
    if "real" not in wanted_sources:
        return found
    one, two = runs(work, rows=8, layers=1, threads=1)
    with Load("bursts"):
        for new, what, wanted in (
            (two, "equal", "pass"),
            (spinning(two), "a tenth slower", "fail"),
        ):
            print(f"{CLAIM}: real, {what}", file=sys.stderr)
            outcomes = [measured(one, new, seed) for seed in range(count)]
            found[f"real, bursts, {what}"] = summary(outcomes, wanted)
    return found


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=100, help="trials of each kind (100)")
    parser.add_argument("--sources", default=SOURCES, help=f"of timings ({SOURCES})")
    parser.add_argument("--record", type=Path, metavar="FILE", help="record timings, and stop")
    parser.add_argument("--peers-python", type=Path, help="not used: there are no peers here")
    parser.add_argument("--work-dir", type=Path, help="where the graph goes (build/)")
    parser.add_argument("--output", type=Path, default=_measure.RESULTS / f"{CLAIM}.json")
    options = parser.parse_args()
    with _measure.Session(CLAIM, options, peers=False) as session:
        if options.record is not None:
            times = record(session.work)
            document = {"what": " ".join(str(__doc__).split()), "times_10us": times}
            options.record.write_text(json.dumps(document, separators=(",", ":")), "utf-8")
            return
        found = trials(session.repeat, session.work, options.sources.split(","))
        session.report(
            "The latency gate: how often equals pass, and a tenth is caught",
            METHOD,
            {name: {"rounds": row.pop("rounds")} for name, row in found.items()},
            [
                _measure.Target(f"{name}: share that is {row['wanted']}", "at least", 0.95,
                                row["share"])
                for name, row in found.items()
            ],
            trials=found,
        )  # fmt: skip


if __name__ == "__main__":
    main()
