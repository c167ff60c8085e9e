"""The one measuring loop: every subject once per round, in random order, after a warm-up.

Subjects that take turns see the same machine: what a neighbour, a clock or a temperature does to
one round is done to all subjects in it, and a ratio within the round is free of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Interleaved", "WarmUp"]

Float64Array = npt.NDArray[np.float64]

_WINDOW: Final = 4
_SETTLED: Final = 0.05
"""Runs are warm when the medians of two windows differ by no more than this, for every subject."""


@dataclass(frozen=True)
class WarmUp:
    """The runs of the warm-up, which do not count.

    Attributes:
        runs: Of each subject.
        stable: Whether the times had settled; if not, the limit came first.
    """

    runs: int
    stable: bool


class Interleaved:
    """Subjects that are timed in turns.

    Args:
        runs: What is timed, by name; a run ends when its result is there.
        seed: Seeds the order within each round.
    """

    def __init__(self, runs: Mapping[str, Callable[[], object]], *, seed: int) -> None:
        self._runs = tuple(runs.values())
        self._names = tuple(runs)
        self._random = np.random.default_rng(seed)
        self._rows: list[list[float]] = []

    @property
    def rounds(self) -> int:
        """The number of measured rounds."""
        return len(self._rows)

    @property
    def times_ms(self) -> dict[str, Float64Array]:
        """The times of each subject, one per round."""
        table = np.array(self._rows, np.float64).reshape(-1, len(self._names))
        return dict(zip(self._names, table.T, strict=True))

    def warm_up(self, *, windows: int = 12, limit_s: float = 20.0) -> WarmUp:
        """Run all subjects until their times settle.

        Args:
            windows: At most so many windows of four runs; two at least, if there is time.
            limit_s: No window begins after these seconds.
        """
        end = time.perf_counter() + limit_s
        before: Any = None
        for window in range(1, windows + 1):
            medians = np.median([self._round() for _ in range(_WINDOW)], axis=0)
            if before is not None and np.all(np.abs(medians / before - 1) <= _SETTLED):
                return WarmUp(window * _WINDOW, stable=True)
            if time.perf_counter() > end:
                return WarmUp(window * _WINDOW, stable=False)
            before = medians
        return WarmUp(windows * _WINDOW, stable=False)

    def extend(self, rounds: int, *, until_s: float = math.inf) -> None:
        """Measure further rounds.

        Args:
            rounds: How many, at most.
            until_s: No round begins after this reading of `time.perf_counter`.
        """
        for _ in range(rounds):
            if time.perf_counter() > until_s:
                return
            self._rows.append(self._round())

    def _round(self) -> list[float]:
        """Return the ms of each subject in one round."""
        row = [0.0] * len(self._runs)
        for which in self._random.permutation(len(self._runs)).tolist():
            run = self._runs[which]
            start = time.perf_counter_ns()
            run()
            row[which] = max(time.perf_counter_ns() - start, 1) / 1e6
        return row
