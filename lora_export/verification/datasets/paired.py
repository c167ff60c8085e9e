"""Paired comparison of graph and reference on the same examples: is one more accurate?

    McNemar, exact    of the examples that one of them gets right, b only the graph and c only the
                      reference: two-sided binomial p-value of b in b + c at 1/2 (McNemar 1947)
    bootstrap         examples drawn with replacement, both models scored on each draw: the
                      percentile interval of the difference (Efron 1979)

Not to find a difference does not show that there is none: `judge_pair` says ``pass`` only where the
interval lies within a margin that does not matter, and ``ambiguous`` where neither is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = [
    "CONFIDENCE",
    "bootstrap_difference",
    "bootstrap_interval",
    "judge_pair",
    "mcnemar",
]

Float64Array = npt.NDArray[np.float64]

CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 2000
_CHUNK_BYTES: Final = 1 << 25


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        only_first: Examples that only the first model gets right.
        only_second: Examples that only the second one does.

    >>> mcnemar(0, 0), mcnemar(5, 5), mcnemar(0, 6)
    (1.0, 1.0, 0.03125)
    """
    total, least = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # C(total, 0); integers, so that nothing is rounded
    for k in range(least):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << total))


def bootstrap_difference(
    first: Float64Array,
    second: Float64Array,
    value: Callable[[Float64Array], Float64Array],
    *,
    seed: int,
) -> tuple[float, tuple[float, float]]:
    """Return ``value(first) − value(second)`` and its 95 % interval over examples.

    Args:
        first: The parts of the first model's score, a row for each example ``[n, k]``.
        second: Those of the second one, on the same examples.
        value: Scores sums of parts, ``[..., k]`` → ``[...]``.
        seed: Seeds the draws.
    """
    count = len(first)
    difference = float(value(first.sum(0)) - value(second.sum(0)))
    if np.array_equal(first, second):
        return 0.0, (0.0, 0.0)
    drawn = [value(each @ first) - value(each @ second) for each in _draws(count, seed)]
    return difference, _middle(drawn)


def bootstrap_interval(
    parts: Float64Array, value: Callable[[Float64Array], Float64Array], *, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of ``value(parts)`` over examples.

    Args:
        parts: The parts of the score, a row for each example ``[n, k]``.
        value: Scores sums of parts, ``[..., k]`` → ``[...]``.
        seed: Seeds the draws.
    """
    return _middle([value(each @ parts) for each in _draws(len(parts), seed)])


def _draws(count: int, seed: int) -> Iterator[Float64Array]:
    """Yield how often each of `count` examples is drawn, ``[draws, count]``, in pieces."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK_BYTES // (8 * count))
    for start in range(0, _RESAMPLES, step):
        size = min(step, _RESAMPLES - start)
        yield random.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)


def _middle(drawn: list[Float64Array]) -> tuple[float, float]:
    """Return the interval that holds the middle 95 % of what was drawn."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return float(low), float(high)


def judge_pair(
    interval: tuple[float, float], margin: float, p_value: float | None
) -> tuple[Verdict, str]:
    """Return whether two scores are the same, and why.

    Args:
        interval: Of their difference.
        margin: A difference up to this does not matter.
        p_value: Of McNemar's test, where each example is right or wrong.
    """
    low, high = interval
    shown = f"[{low:+.4f}, {high:+.4f}]"
    if p_value is not None and p_value < 1 - CONFIDENCE:
        return "fail", f"McNemar's test tells the two apart (p = {p_value:.2g})"
    if low > margin or high < -margin:
        return "fail", f"the interval {shown} of the difference lies beyond ±{margin:.3g}"
    if -margin <= low and high <= margin:
        return "pass", f"the interval {shown} of the difference lies within ±{margin:.3g}"
    return "ambiguous", f"the interval {shown} of the difference reaches beyond ±{margin:.3g}"
