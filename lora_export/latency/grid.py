"""Measurement of subjects over a grid: every cell interleaved, until each ratio is decided."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.errors import UnsupportedError
from lora_export.core.memory import available_bytes
from lora_export.core.modes import BASE_GRAPH
from lora_export.latency.bench_report import Cell, RatioRow, Subject, TimeRow
from lora_export.latency.startup import measure_startup
from lora_export.latency.subjects import RUNNERS, open_timed
from lora_export.ondevice.judge.ratios import CONFIDENCE, Ratio, bootstrap_ratio, look_rounds
from lora_export.ondevice.judge.timing import Interleaved
from lora_export.ondevice.trt.build_record import plan_file
from lora_export.runtime.energy import energy_of_a_run_mj, find_meter
from lora_export.runtime.trt import library_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.core.progress import Progress
    from lora_export.latency.points import Bind, Point, Source
    from lora_export.ondevice.judge.timing import Float64Array, WarmUp
    from lora_export.runtime.energy import Meter

__all__ = ["BASELINE", "Plan", "TimedGraph", "key_of", "measure"]

BASELINE: Final = "@baseline"
_SESSION_FACTOR: Final = 2.0
"""A session holds its weights, and at worst a packed copy of them."""
_LEAST_ROUNDS: Final = 5
"""However long they take."""


@dataclass(frozen=True)
class TimedGraph:
    """A subject that is to be timed: a graph of a source on a runner."""

    source: Source
    graph: str
    runner: str
    baseline: bool = False

    @property
    def key(self) -> str:
        """Its key in the report."""
        return key_of(self.runner, self.graph) + (BASELINE if self.baseline else "")


@dataclass(frozen=True)
class Plan:
    """The length of the measurement, and the condition that ends it.

    Attributes:
        rounds: Of each cell, before it is looked at.
        max_rounds: The most of each cell, where its judgement is open.
        max_seconds: No further rounds of a cell begin after so long, but for the first five.
        seed: Seeds inputs, order and resampling.
        threads: Threads within an operator; 0 leaves the choice to the runtime.
        startup: Whether each graph is also opened in a process of its own.
        is_open: Told a cell's times and how often it will be looked at: whether to go on.
    """

    rounds: int
    max_rounds: int
    max_seconds: float
    seed: int
    threads: int
    startup: bool
    is_open: Callable[[Point, Mapping[str, Float64Array], int], bool]


def key_of(runner: str, graph: str) -> str:
    """Return the key of a subject."""
    return f"{runner}:{graph}"


def measure(
    chosen: Sequence[TimedGraph], points: Sequence[Point], plan: Plan, progress: Progress
) -> tuple[dict[str, Subject], list[Cell]]:
    """Time `chosen` at each of `points`; return the report's subjects and cells.

    Raises:
        UnsupportedError: All subjects together, or the inputs of a point, do not fit into memory.
        LoraExportError: One of them cannot be opened or run.
    """
    _require_memory(chosen)
    subjects = {each.key: _subject(each, points[0], plan, progress) for each in chosen}
    timed: dict[str, Bind] = {}
    for each in chosen:
        progress.start(f"opening {each.key}")
        runner = RUNNERS[each.runner]
        timed[each.key] = open_timed(each.source, each.graph, runner, threads=plan.threads)
    cells: list[Cell] = []
    with ExitStack() as stack:
        meter = find_meter(stack)
        for point in points:
            progress.start(f"timing {point.name}")
            try:
                runs = {key: bind(point, plan.seed) for key, bind in timed.items()}
            except MemoryError as error:
                msg = f"the inputs of {point.name} do not fit into memory: {error}"
                raise UnsupportedError(msg, hint="Choose a smaller --batch.") from error
            cells.append(_cell(runs, point, plan, meter))
    return subjects, cells


def _cell(
    runs: Mapping[str, Callable[[], object]], point: Point, plan: Plan, meter: Meter | None
) -> Cell:
    measurement = Interleaved(runs, seed=plan.seed)
    warm = measurement.warm_up()
    stops = look_rounds(plan.rounds, plan.max_rounds)
    end = time.perf_counter() + plan.max_seconds
    measurement.extend(min(_LEAST_ROUNDS, plan.rounds))
    for stop in stops:
        measurement.extend(stop - measurement.rounds, until_s=end)
        open_still = plan.is_open(point, measurement.times_ms, len(stops))
        if not open_still or time.perf_counter() > end:
            break
    times = measurement.times_ms
    energy = {
        key: energy_of_a_run_mj(meter, run) if meter is not None else None
        for key, run in runs.items()
    }
    return Cell(
        kind=point.kind,
        batch=point.batch,
        length=point.length,
        past=point.past,
        source=point.source,
        rounds=measurement.rounds,
        times={key: _time_row(times[key], point, warm, energy[key]) for key in runs},
        ratios=[_ratio_row(times, key, over, plan.seed) for key, over in _pairs(list(runs))],
    )


def _time_row(
    samples: Float64Array, point: Point, warm: WarmUp, energy_mj: float | None
) -> TimeRow:
    median, p90, p99 = (float(np.quantile(samples, q)) for q in (0.5, 0.9, 0.99))
    per_second = point.batch / median * 1e3
    return TimeRow(
        median_ms=median,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(samples.min()),
        per_second=per_second,
        tokens_per_second=per_second * point.length if point.text else None,
        warm_up_runs=warm.runs,
        stable=warm.stable,
        energy_mj=energy_mj,
        samples_ms=[round(each, 6) for each in samples.tolist()],
    )


def _ratio_row(times: Mapping[str, Float64Array], key: str, over: str, seed: int) -> RatioRow:
    ratio = paired(times, key, over, seed=seed)
    return RatioRow(subject=key, over=over, ratio=ratio.estimate, interval=ratio.interval)


def paired(
    times: Mapping[str, Float64Array], key: str, over: str, *, seed: int,
    confidence: float = CONFIDENCE,
) -> Ratio:  # fmt: skip
    """Return the paired ratio of two subjects of one cell."""
    estimate, interval = bootstrap_ratio(times[over], times[key], seed=seed, confidence=confidence)
    return Ratio(estimate, *interval)


def _pairs(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: with the baseline, with the base, with the first runner's."""
    first = next(key for key in keys if not key.endswith(BASELINE)).partition(":")[0]
    found: list[tuple[str, str]] = []
    for key in keys:
        runner, _, graph = key.partition(":")
        others = (
            key + BASELINE,
            key_of(runner, BASE_GRAPH + (BASELINE if key.endswith(BASELINE) else "")),
            key_of(first, graph),
        )
        found += [(key, other) for other in dict.fromkeys(others) if other in keys and other != key]
    return found


def _subject(each: TimedGraph, point: Point, plan: Plan, progress: Progress) -> Subject:
    files, startup = _files(each), None  # an engine that is missing is told before anything runs
    if plan.startup and not RUNNERS[each.runner].torch:
        progress.start(f"start-up of {each.key}")
        startup = measure_startup(
            each.source, each.graph, each.runner, point, threads=plan.threads, seed=plan.seed
        )
    return Subject(
        graph=each.graph,
        mode=each.source.mode(each.graph),
        runner=each.runner,
        files=files,
        baseline=each.baseline,
        startup=startup,
    )


def _files(each: TimedGraph) -> dict[str, str]:
    """Return the SHA-256 of what is run; an engine has its weights in it."""
    library = RUNNERS[each.runner].engine
    if library is None:
        return each.source.files(each.graph)
    held, target = each.source.engine(each.graph, library)
    plan = plan_file(held, target, library_version(library), library)
    return {plan: each.source.manifest.files[plan]}


def _require_memory(chosen: Sequence[TimedGraph]) -> None:
    """Subjects take turns, so that all of them are open at once."""
    weights = sum(
        (each.source.export_dir / file).stat().st_size
        for each in chosen
        for file in each.source.files(each.graph)
    )
    needed, free = int(_SESSION_FACTOR * weights), available_bytes()
    if free is not None and needed > free:
        msg = (
            f"{len(chosen)} graphs at once need about {needed / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free"
        )
        raise UnsupportedError(msg, hint="Time fewer of them at once: --graph NAME")
