"""Paired ratios: estimate, confidence interval, verdict, rounds needed to decide.

A round gives one ratio of neighbours in time. The estimate is the median of the rounds' ratios:
half of the rounds may be hit by something else. What hits one round tends to hit the next as well
(a neighbour's burst, a clock that changes), so rounds are not independent and the interval is a
circular block bootstrap (Politis and Romano 1992): blocks of neighbouring rounds are drawn with
replacement, and the quantiles of the medians are the interval.

A measurement that is looked at several times, and ended when it is decided, errs more often than
one that is looked at once: `look_confidence` shares the permitted error among the looks
(Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = [
    "CONFIDENCE",
    "Ratio",
    "bootstrap_ratio",
    "gate",
    "look_confidence",
    "look_rounds",
    "rounds_to_settle",
]

Float64Array = npt.NDArray[np.float64]

CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 2000
_MOST_ROUNDS: Final = 1_000_000


@dataclass(frozen=True)
class Ratio:
    """A paired ratio and its interval."""

    estimate: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """The interval."""
        return self.low, self.high

    def over(self, other: Ratio) -> Ratio:
        """Return the ratio of two independent ones; their errors add up as squares of logarithms.

        >>> Ratio(1.1, 1.0, 1.21).over(Ratio(1.0, 1.0, 1.0)).interval
        (1.0, 1.21)
        """
        below = math.hypot(
            math.log(self.estimate / self.low), math.log(other.high / other.estimate)
        )
        above = math.hypot(
            math.log(self.high / self.estimate), math.log(other.estimate / other.low)
        )
        estimate = self.estimate / other.estimate
        return Ratio(
            estimate, float(f"{estimate * math.exp(-below):.12g}"),
            float(f"{estimate * math.exp(above):.12g}"),
        )  # fmt: skip


def block_length(rounds: int) -> int:
    """Return the length of the bootstrap's blocks: the cube root of the number of rounds, up."""
    return max(1, math.ceil(math.pow(rounds, 1 / 3)))


def bootstrap_ratio(
    base_ms: Float64Array, other_ms: Float64Array, *, seed: int, confidence: float = CONFIDENCE
) -> tuple[float, tuple[float, float]]:
    """Return the median of the paired ratios and its bootstrap interval.

    Args:
        base_ms: Times of the base, one per round, in the order in which they were taken.
        other_ms: Times of what is compared with it in the same rounds.
        seed: Seeds the resampling.
        confidence: The share of intervals that hold the truth.
    """
    ratios = other_ms / base_ms
    rounds = len(ratios)
    block = block_length(rounds)
    random = np.random.default_rng(seed)
    starts = random.integers(0, rounds, (_RESAMPLES, -(-rounds // block)))
    circle = np.concatenate([ratios, ratios[: block - 1]])
    blocks = np.lib.stride_tricks.sliding_window_view(circle, block)  # (rounds, block)
    drawn = blocks[starts].reshape(_RESAMPLES, -1)[:, :rounds]
    tail = (1 - confidence) / 2
    low, high = np.quantile(_medians(drawn), [tail, 1 - tail])
    return float(np.median(ratios)), (float(low), float(high))


def _medians(rows: Float64Array) -> Float64Array:
    """Return the median of each row, in a fraction of the time of `numpy.median`."""
    middle = rows.shape[1] // 2
    parted = np.partition(rows, middle, axis=1)
    upper = parted[:, middle]
    if rows.shape[1] % 2:
        return np.asarray(upper)
    return np.asarray((parted[:, :middle].max(axis=1) + upper) / 2)


def gate(interval: tuple[float, float], max_ratio: float) -> tuple[Verdict, str]:
    """Return the verdict on an interval: above the limit, below it, or astride."""
    low, high = interval
    shown = f"the interval [{low:.3f}, {high:.3f}]"
    if low > max_ratio:
        return "fail", f"{shown} lies above the limit {max_ratio}"
    if low <= high <= max_ratio:  # which NaN is not
        return "pass", f"{shown} lies below the limit {max_ratio}"
    return "ambiguous", f"{shown} straddles the limit {max_ratio}"


def look_rounds(rounds: int, max_rounds: int) -> list[int]:
    """Return after how many rounds a measurement is looked at: doubled each time.

    >>> look_rounds(50, 400), look_rounds(50, 120), look_rounds(50, 10)
    ([50, 100, 200, 400], [50, 100, 120], [50])
    """
    found = [rounds]
    while found[-1] < max_rounds:
        found.append(min(2 * found[-1], max_rounds))
    return found


def look_confidence(count: int, confidence: float = CONFIDENCE) -> float:
    """Return the confidence of each of `count` looks that together keep `confidence`.

    >>> look_confidence(5)
    0.99
    """
    return round(1 - (1 - confidence) / count, 12)


def rounds_to_settle(
    estimate: float,
    interval: tuple[float, float],
    max_ratio: float,
    rounds: int,
    *,
    fixed: float = 0.0,
) -> int | None:
    """Return how many rounds would take the limit out of the interval; None past a million.

    The interval narrows with the square root of the rounds, but for what is not measured now:
    n' = n · (h² − f²) / (d² − f²), where d = |ln(ratio / limit)| and h is the half of the interval,
    in logarithms, that faces the limit.

    Args:
        estimate: The ratio.
        interval: Its interval.
        max_ratio: The limit.
        rounds: How many were measured.
        fixed: f, the part of h that further rounds leave as it is: a stored baseline's.

    >>> rounds_to_settle(1.0, (0.9, 1.1), 1.05, 50)
    191
    >>> rounds_to_settle(1.0, (0.9, 1.1), 1.05, 50, fixed=0.06) is None
    True
    """
    distance = abs(math.log(estimate / max_ratio))
    facing = interval[1] if estimate <= max_ratio else interval[0]
    half = abs(math.log(facing / estimate))
    room = distance**2 - fixed**2
    needed = rounds * (half**2 - fixed**2) / room if room > 0 else math.inf
    if not needed <= _MOST_ROUNDS:
        return None
    return max(rounds + 1, math.ceil(needed))
