"""Latency within a verification: an adapter's graph against the base graph, as a row of a report.

Measured by `lora_export.ondevice.judge.timing`, judged by `lora_export.ondevice.judge.ratios`; on
devices as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.judge.ratios import CONFIDENCE, bootstrap_ratio, gate, rounds_to_settle
from lora_export.ondevice.judge.timing import Interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = ["TimingRow", "latency_row", "measure_pair"]

Float64Array = npt.NDArray[np.float64]


class _Timed(TypedDict):
    verdict: Verdict
    reason: str
    median_ms: float
    p90_ms: float
    base_median_ms: float
    base_p90_ms: float
    ratio: float
    ratio_interval: tuple[float, float]
    confidence: float
    max_ratio: float
    rounds: int


class TimingRow(_Timed, total=False):
    """An adapter's graph against the base graph, both timed; times are milliseconds.

    ``rounds_needed`` is there where the verdict is ``ambiguous``, and None past a million.
    """

    rounds_needed: int | None


def measure_pair(
    run_base: Callable[[], object], run_merged: Callable[[], object], *, rounds: int, seed: int
) -> tuple[Float64Array, Float64Array]:
    """Return the times in ms of `rounds` runs of each, interleaved in random order."""
    measurement = Interleaved({"base": run_base, "merged": run_merged}, seed=seed)
    measurement.warm_up()
    measurement.extend(rounds)
    times = measurement.times_ms
    return times["base"], times["merged"]


def latency_row(
    base_ms: Float64Array, merged_ms: Float64Array, *, max_ratio: float, seed: int
) -> TimingRow:
    """Return a graph's row in ``reports/latency.json``."""
    ratio, interval = bootstrap_ratio(base_ms, merged_ms, seed=seed)
    verdict, reason = gate(interval, max_ratio)
    row: TimingRow = {
        "verdict": verdict,
        "reason": reason,
        "median_ms": float(np.median(merged_ms)),
        "p90_ms": float(np.quantile(merged_ms, 0.9)),
        "base_median_ms": float(np.median(base_ms)),
        "base_p90_ms": float(np.quantile(base_ms, 0.9)),
        "ratio": ratio,
        "ratio_interval": interval,
        "confidence": CONFIDENCE,
        "max_ratio": max_ratio,
        "rounds": len(base_ms),
    }
    if verdict == "ambiguous":
        row["rounds_needed"] = rounds_to_settle(ratio, interval, max_ratio, len(base_ms))
    return row
