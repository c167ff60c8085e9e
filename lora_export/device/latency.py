"""Latency: the merged graph against the base graph, interleaved, as a ratio with an interval.

Rounds run both graphs in random order; each round gives one ratio of neighbours in time, so that a
drift of the machine cancels. The estimate is the median of the rounds' ratios, its interval a
percentile bootstrap over rounds (Efron 1979).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.device.tolerances import Verdict

__all__ = ["bootstrap_ratio", "gate", "latency_row", "measure_pair"]

Float64Array = npt.NDArray[np.float64]

_WARM_UP: Final = 8
_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95


def measure_pair(
    run_base: Callable[[], object], run_merged: Callable[[], object], *, rounds: int, seed: int
) -> tuple[Float64Array, Float64Array]:
    """Return the times in ms of `rounds` runs of each, interleaved in random order."""
    random = np.random.default_rng(seed)
    runs = (run_base, run_merged)
    for _ in range(_WARM_UP):
        for run in runs:
            run()
    times = np.empty((rounds, 2))
    for row in times:
        for which in random.permutation(2):
            start = time.perf_counter_ns()
            runs[which]()
            row[which] = (time.perf_counter_ns() - start) / 1e6
    return times[:, 0], times[:, 1]


def bootstrap_ratio(
    base_ms: Float64Array, merged_ms: Float64Array, *, seed: int
) -> tuple[float, tuple[float, float]]:
    """Return the median of the paired ratios and its 95 % bootstrap interval.

    Args:
        base_ms: Times of the base, one per round.
        merged_ms: Times of the merged graph in the same rounds.
        seed: Seeds the resampling.
    """
    ratios = merged_ms / base_ms
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(np.median(ratios)), (float(low), float(high))


def gate(interval: tuple[float, float], max_ratio: float) -> tuple[Verdict, str]:
    """Return the verdict on an interval: above the limit, below it, or astride."""
    low, high = interval
    if low > max_ratio:
        return "fail", f"the interval [{low:.3f}, {high:.3f}] lies above the limit {max_ratio}"
    if high > max_ratio:
        return "ambiguous", f"the interval [{low:.3f}, {high:.3f}] straddles the limit {max_ratio}"
    return "pass", f"the interval [{low:.3f}, {high:.3f}] lies below the limit {max_ratio}"


def latency_row(
    base_ms: Float64Array, merged_ms: Float64Array, *, max_ratio: float, seed: int
) -> dict[str, Any]:
    """Return a graph's row in ``reports/latency.json``."""
    ratio, interval = bootstrap_ratio(base_ms, merged_ms, seed=seed)
    verdict, reason = gate(interval, max_ratio)
    return {
        "verdict": verdict,
        "reason": reason,
        "median_ms": float(np.median(merged_ms)),
        "p90_ms": float(np.quantile(merged_ms, 0.9)),
        "base_median_ms": float(np.median(base_ms)),
        "base_p90_ms": float(np.quantile(base_ms, 0.9)),
        "ratio": ratio,
        "ratio_interval": list(interval),
        "confidence": _CONFIDENCE,
        "max_ratio": max_ratio,
        "rounds": len(base_ms),
    }
