"""The gate: each ratio against its limit, over a graph measured beside it or over a baseline file.

What runs beside a subject is the better baseline: both see the same machine. A file keeps ratios
over the base graph, which a slower or busier machine of the same class changes little, and another
class of machine does: `Baseline.machine` says which one it was.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.reports.machine_report import MachineClass
from lora_export.core.reports.report_model import as_json
from lora_export.latency.bench_report import Gate, GateRow
from lora_export.latency.grid import BASELINE, paired
from lora_export.ondevice.file_opening import read_file, reason_of
from lora_export.ondevice.judge.ratios import Ratio, gate, look_confidence, rounds_to_settle
from lora_export.ondevice.printable import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.latency.bench_report import BenchReport
    from lora_export.latency.points import Point
    from lora_export.ondevice.judge.timing import Float64Array
    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = ["Baseline", "Judge", "baseline_of", "is_wide", "parse_baseline", "read_baseline"]

BASELINE_FORMAT: Final = 1
_LIMIT_BYTES: Final = 1 << 24
_RATIOS: Final = (1e-6, 1e6)
"""What a ratio of two times can be."""
_KEPT_SHARE: Final = 0.25
"""Of what a limit allows, in logarithms: the half of an interval that is worth keeping."""
_REWRITE: Final = "write it again with --update-baseline"
_SEVERITY: Final[tuple[Verdict, ...]] = ("fail", "ambiguous", "unverified", "pass")


class BaselineRow(BaseModel):
    """A ratio over the base graph, as it was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    cell: str
    subject: str
    over: str
    ratio: float
    interval: tuple[float, float]

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of the ratio: its cell, its subject, and the subject below it."""
        return self.cell, self.subject, self.over


class _Version(BaseModel):
    """The part of a file that any version can read."""

    format_version: int = BASELINE_FORMAT


class Baseline(BaseModel):
    """The contents of the file of ``--baseline FILE``.

    Attributes:
        machine: The class of the machine; see `runtime.environment.machine_class`.
        packages: The versions of the libraries, to be read.
        rows: The ratios.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    format_version: int = BASELINE_FORMAT
    machine: MachineClass
    packages: dict[str, str]
    rows: list[BaselineRow]

    def difference(self, machine: MachineClass) -> str | None:
        """Return why ratios of `machine` cannot be compared with these; None where they can."""
        there, here = as_json(self.machine), as_json(machine)
        unlike = [
            f"{key} {there.get(key)!r} there, {here.get(key)!r} here"
            for key in dict.fromkeys((*there, *here))
            if there.get(key) != here.get(key)
        ]
        return f"not comparable, another class of machine: {'; '.join(unlike)}" if unlike else None

    def find(self, cell: str, subject: str, over: str) -> Ratio | None:
        """Return a ratio, where the file has it."""
        for row in self.rows:
            if row.key == (cell, subject, over):
                return Ratio(row.ratio, *row.interval)
        return None


def parse_baseline(text: bytes, source: str) -> Baseline:
    """Read a baseline.

    Raises:
        InputError: It is none.
        UnsupportedError: It was written by a newer version.
    """
    try:
        version = _Version.model_validate_json(text).format_version
        if version > BASELINE_FORMAT:
            msg = f"{source!r} has format_version {version}; this reads {BASELINE_FORMAT}"
            raise UnsupportedError(msg, hint="Upgrade lora-export.")
        found = Baseline.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _no_baseline(source, f"{where}: {first['msg']}") from error
    least, most = _RATIOS
    seen: set[tuple[str, str, str]] = set()
    for row in found.rows:
        low, high = row.interval
        what = f"the ratio of {row.subject} in {row.cell}"
        if not least <= low <= row.ratio <= high <= most:
            raise _no_baseline(source, f"{what} lies outside its interval")
        if row.key in seen:
            raise _no_baseline(source, f"{what} is there twice")
        seen.add(row.key)
    return found


def _no_baseline(source: str, why: str) -> InputError:
    msg = f"{source!r} is not a baseline of latencies: {why}"
    return InputError(msg, hint="Write it again: --update-baseline")


def read_baseline(path: Path) -> Baseline:
    """Read the file of ``--baseline``.

    Raises:
        InputError: There is none, or it is damaged.
    """
    try:
        text = read_file(path, _LIMIT_BYTES)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        what = "there is no baseline at" if absent else "cannot read the baseline"
        msg = f"{what} {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Write it first: --update-baseline") from error
    return parse_baseline(text, str(path))


def baseline_of(report: BenchReport, machine: MachineClass) -> bytes:
    """Return the file that keeps a report's ratios over the base graph."""
    rows = [
        {"cell": cell.name, "subject": row.subject, "over": row.over,
         "ratio": round(row.ratio, 5), "interval": [round(each, 5) for each in row.interval]}
        for cell in report.cells
        for row in cell.ratios
        if row.over == f"{row.subject.partition(':')[0]}:base"
    ]  # fmt: skip
    document = {
        "format_version": BASELINE_FORMAT,
        "machine": as_json(machine),
        "packages": report.environment.packages,
        "rows": rows,
    }
    return f"{json_text(document, ascii_only=False)}\n".encode()


def is_wide(
    times: Mapping[str, Float64Array],
    pairs: Sequence[tuple[str, str]],
    *,
    max_ratio: float,
    seed: int,
) -> bool:
    """Return whether a ratio is not known well enough to be kept as a baseline.

    Its error comes to every later comparison with it, and no later round takes it away: each half
    of its interval may be a quarter of what the limit allows.

    Args:
        times: The times of the subjects of one cell.
        pairs: What is kept, and over what.
        max_ratio: The limit that it is for.
        seed: Seeds the resampling.
    """
    most = _KEPT_SHARE * abs(math.log(max_ratio))
    found = (paired(times, *pair, seed=seed) for pair in pairs)
    return any(
        max(math.log(each.high / each.estimate), math.log(each.estimate / each.low)) > most
        for each in found
    )


class Judge:
    """Judges cells while they are measured; the last judgement of each cell stands.

    Args:
        max_ratio: The limit.
        pairs: What is judged, and over what; both are timed side by side.
        against: What the baseline is, in words.
        stored: Ratios of earlier; each pair is judged over the same pair of theirs.
        unlike: Why `stored` cannot be compared with this machine.
        lacking: Subjects that should be judged, and that the baseline does not have.
        seed: Seeds the resampling.
    """

    def __init__(
        self,
        max_ratio: float,
        pairs: Sequence[tuple[str, str]],
        *,
        against: str,
        stored: Baseline | None = None,
        unlike: str | None = None,
        lacking: Sequence[str] = (),
        seed: int,
    ) -> None:
        self._max_ratio, self._pairs, self._against = max_ratio, pairs, against
        self._stored, self._unlike, self._seed = stored, unlike, seed
        self._lacking = lacking
        self._rows: dict[Point, list[GateRow]] = {}

    def is_open(self, point: Point, times: Mapping[str, Float64Array], count: int) -> bool:
        """Judge one cell as it is now; return whether more rounds may decide something.

        Args:
            point: The cell.
            times: The times of its subjects.
            count: How often the cell is looked at, at most.
        """
        confidence = look_confidence(count)
        rows = [self._row(point, times, *pair, confidence) for pair in self._pairs]
        rows += [_unjudged(point, subject, len(times[subject])) for subject in self._lacking]
        self._rows[point] = rows
        return any(row.verdict == "ambiguous" for row in rows)

    def gate(self) -> Gate:
        """Return the judgement of all cells."""
        rows = [row for found in self._rows.values() for row in found]
        found = {row.verdict for row in rows}
        worst: Verdict = next((each for each in _SEVERITY if each in found), "unverified")
        return Gate(max_ratio=self._max_ratio, verdict=worst, against=self._against, rows=rows)

    def _row(
        self,
        point: Point,
        times: Mapping[str, Float64Array],
        subject: str,
        over: str,
        confidence: float,
    ) -> GateRow:
        found: Ratio | None
        found = paired(times, subject, over, seed=self._seed, confidence=confidence)
        why, earlier = None, None
        if self._stored is not None:
            earlier = self._stored.find(point.name, subject, over)
            missing = f"the baseline has no such figure; {_REWRITE}"
            why = self._unlike or (missing if earlier is None else None)
            found = None if why or earlier is None else found.over(earlier)
        rounds = len(times[subject])
        verdict, reason, needed = _judged(found, why, earlier, self._max_ratio, rounds)
        return GateRow(
            cell=point.name,
            subject=subject,
            over=over if self._stored is None else f"{over}, as in the baseline",
            ratio=None if found is None else found.estimate,
            interval=None if found is None else found.interval,
            verdict=verdict,
            reason=reason,
            rounds=rounds,
            rounds_needed=needed,
        )


def _unjudged(point: Point, subject: str, rounds: int) -> GateRow:
    return GateRow(
        cell=point.name, subject=subject, over=subject + BASELINE, ratio=None, interval=None,
        verdict="unverified", reason="the baseline has no graph of that name", rounds=rounds,
    )  # fmt: skip


def _judged(
    ratio: Ratio | None, why: str | None, earlier: Ratio | None, max_ratio: float, rounds: int
) -> tuple[Verdict, str, int | None]:
    """Return verdict, reason and the rounds that an ambiguous ratio needs."""
    if ratio is None:
        return "unverified", str(why), None
    verdict, reason = gate(ratio.interval, max_ratio)
    if verdict != "ambiguous":
        return verdict, reason, None
    fixed = 0.0
    if earlier is not None:  # the half of the baseline's own interval that faces the limit
        ends = (earlier.estimate, earlier.low), (earlier.high, earlier.estimate)
        above, below = ends[0 if ratio.estimate <= max_ratio else 1]
        fixed = math.log(above / below)
    needed = rounds_to_settle(ratio.estimate, ratio.interval, max_ratio, rounds, fixed=fixed)
    more = f"about {needed} rounds would settle it" if needed else "no number of rounds settles it"
    if not needed and fixed:
        more += f": the baseline itself is not known well enough; {_REWRITE}"
    return verdict, f"{reason}; {more}", needed
