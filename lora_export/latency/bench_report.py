"""``reports/bench.json``: what `lora-export bench` measured, as validated values.

    BenchReport
    ├── environment            processor, clocks, GPUs, versions; `MachineReport`
    ├── settings               rounds, seed, threads, confidence
    ├── subjects {key → …}     what was run; a key is ``RUNNER:GRAPH``, the baseline's
    │                          ``RUNNER:GRAPH@baseline``
    ├── cells [ … ]            one for each point of the grid
    │   ├── kind, batch, length, past
    │   ├── times {key → …}    milliseconds of one run, and what follows from them
    │   └── ratios [ … ]       paired ratios of one subject over another, with their interval
    └── gate                   verdicts, where there was a limit; None otherwise

Times are milliseconds, memory is bytes, energy is millijoules for one run. `kind` is ``forward``
for a graph without a cache; of a decoder with one, ``prefill`` (`length` tokens after an empty
past: the time to the first token) or ``decode`` (one token after `past` others: the time per
token). `length` counts the new tokens of each row; of an encoder-decoder's prefill, those that the
encoder reads, and `source` counts them of a token of its decoder.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from lora_export.core.reports.machine_report import MachineReport
from lora_export.core.reports.report_model import ReportModel

__all__ = [
    "BENCH_FORMAT",
    "BenchReport",
    "BenchSettings",
    "Cell",
    "CellKind",
    "Gate",
    "GateRow",
    "RatioRow",
    "Startup",
    "Subject",
    "TimeRow",
    "point_name",
]

BENCH_FORMAT: Final = 1

CellKind = Literal["forward", "prefill", "decode"]
Verdict = Literal["pass", "fail", "ambiguous", "unverified"]


class Startup(ReportModel):
    """One subject alone in a new process.

    Attributes:
        session_ms: Opening the graph: reading, optimising, packing its weights.
        first_run_ms: The first run, in which memory is allocated.
        peak_bytes: The largest resident memory of the process.
        imported_bytes: Its resident memory before the graph was opened: Python and the runtime.
        device_bytes: What the process took on the GPU; None without one.
    """

    session_ms: float
    first_run_ms: float
    peak_bytes: int | None
    imported_bytes: int | None
    device_bytes: int | None = None


class Subject(ReportModel):
    """One graph on one runner.

    Attributes:
        graph: ``base``, an adapter, ``swappable`` or ``batched``.
        mode: How the graph holds its adapter (the manifest's `mode`).
        runner: A key of `lora_export.latency.subjects.RUNNERS`.
        files: SHA-256 of the graph and of its weight files, as the manifest has them.
        baseline: Whether it is the baseline's.
        startup: None where it was not measured.
        reason: Why it was not run; None where it was.
    """

    graph: str
    mode: str
    runner: str
    files: dict[str, str]
    baseline: bool = False
    startup: Startup | None = None
    reason: str | None = None


class TimeRow(ReportModel):
    """The times of one subject in one cell.

    Attributes:
        median_ms: Of the samples; so are the other quantiles.
        per_second: Rows of the batch in a second, at the median.
        tokens_per_second: New tokens in a second, at the median; None of images and audio.
        warm_up_runs: Unmeasured runs before.
        stable: Whether the times had settled when the measurement began.
        energy_mj: What the whole device took during one run; None without a meter.
        samples_ms: All of them, in the order in which they were taken.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    per_second: float
    tokens_per_second: float | None = None
    warm_up_runs: int
    stable: bool
    energy_mj: float | None = None
    samples_ms: list[float]


class RatioRow(ReportModel):
    """Times of `subject` over those of `over`, round by round.

    Attributes:
        ratio: The median of the rounds' ratios.
        interval: Its interval, of the settings' confidence.
    """

    subject: str
    over: str
    ratio: float
    interval: tuple[float, float]


class Cell(ReportModel):
    """One point of the grid."""

    kind: CellKind
    batch: int
    length: int
    past: int = 0
    source: int = 0
    rounds: int
    times: dict[str, TimeRow]
    ratios: list[RatioRow]

    @property
    def name(self) -> str:
        """The name that people read; see `point_name`."""
        return point_name(self.kind, self.batch, self.length, self.past, self.source)


class GateRow(ReportModel):
    """One judged ratio.

    Attributes:
        cell: The cell's name.
        subject: What was judged.
        over: What it was judged against: a subject, or ``baseline file``.
        ratio: The estimate; None where nothing could be compared.
        interval: Its interval at the gate's confidence, which counts how often it was looked at.
        verdict: ``fail`` where the interval lies above the limit, ``ambiguous`` astride.
        reason: In words.
        rounds: How many were measured.
        rounds_needed: How many would settle an ambiguous row, as its interval narrows.
    """

    cell: str
    subject: str
    over: str
    ratio: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    reason: str
    rounds: int
    rounds_needed: int | None = None


class Gate(ReportModel):
    """The judgement: the worst row's."""

    max_ratio: float
    verdict: Verdict
    against: str
    rows: list[GateRow]


class BenchSettings(ReportModel):
    """The settings of the measurement."""

    rounds: int
    max_rounds: int
    seed: int
    threads: int
    confidence: float


class BenchReport(ReportModel):
    """The whole document."""

    format_version: int = BENCH_FORMAT
    tool: str
    date: str
    environment: MachineReport
    settings: BenchSettings
    subjects: dict[str, Subject]
    cells: list[Cell] = Field(default_factory=list)
    gate: Gate | None = None


def point_name(kind: CellKind, batch: int, length: int, past: int, source: int = 0) -> str:
    """Return how a person reads a point of the grid.

    >>> point_name("prefill", 1, 128, 0), point_name("decode", 4, 1, 512)
    ('prefill 1×128', 'decode 4×1 after 512')
    >>> point_name("decode", 1, 1, 16, 128)
    'decode 1×1 after 16, encoder 128'
    """
    shape = f"{kind} {batch}×{length}"
    behind = f" after {past}" if past else ""
    return f"{shape}{behind}, encoder {source}" if source else f"{shape}{behind}"
