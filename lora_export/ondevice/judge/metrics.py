"""Errors of a graph's outputs relative to the reference: pure NumPy, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.judge.near_ties import is_near_tie

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Metrics", "MetricsTable", "compare", "relative_l2"]

Array = npt.NDArray[Any]


class MetricsTable(TypedDict):
    """`Metrics` as a report has them: a number that is not finite is None."""

    max_abs: float | None
    relative_l2: float | None
    cosine: float | None
    top1_agreement: float | None
    top1_near_ties: int
    top1_clear_disagreements: int
    mean_kl: float | None
    rows: int
    finite: bool


@dataclass(frozen=True)
class Metrics:
    """A graph against its reference, over every compared row.

    Attributes:
        max_abs: Largest absolute difference.
        relative_l2: ``‖graph − reference‖₂ / ‖reference‖₂`` over all compared numbers.
        cosine: Cosine of the angle between the two, over all compared numbers.
        top1_agreement: Share of rows whose largest entry is the same; None without choices.
        top1_near_ties: Rows that disagree where the reference is nearly tied.
        top1_clear_disagreements: Rows that disagree where it is not.
        mean_kl: Mean of ``KL(softmax(reference) ‖ softmax(graph))`` in nats; None without choices.
        rows: How many rows were compared.
        finite: Whether all of the graph's numbers are finite.
    """

    max_abs: float
    relative_l2: float
    cosine: float
    top1_agreement: float | None
    top1_near_ties: int
    top1_clear_disagreements: int
    mean_kl: float | None
    rows: int
    finite: bool

    def as_json(self) -> MetricsTable:
        """Return the metrics as JSON values."""
        return MetricsTable(
            max_abs=_finite(self.max_abs),
            relative_l2=_finite(self.relative_l2),
            cosine=_finite(self.cosine),
            top1_agreement=_finite(self.top1_agreement),
            top1_near_ties=self.top1_near_ties,
            top1_clear_disagreements=self.top1_clear_disagreements,
            mean_kl=_finite(self.mean_kl),
            rows=self.rows,
            finite=self.finite,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def relative_l2(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return ``‖actual − expected‖₂ / ‖expected‖₂`` over lists of rows ``[n, width]``.

    Zero over zero is 0; anything over zero is infinite.
    """
    difference = sum(float(((a - e) ** 2).sum()) for a, e in _wide_pairs(actual, expected))
    size = sum(float((e**2).sum()) for _, e in _wide_pairs(actual, expected))
    if size == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(np.sqrt(difference / size))


def compare(
    actual: Sequence[Array], expected: Sequence[Array], *, choices: bool, tolerance: float
) -> Metrics:
    """Compare rows of the graph with rows of the reference.

    Args:
        actual: The graph's rows, one array ``[n, width]`` per input.
        expected: The reference's rows, of the same shapes.
        choices: Whether a row is a choice among its columns.
        tolerance: The relative L2 error that is tolerated; scales what counts as a tie.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # `finite` says what they would
        return _compare(actual, expected, choices=choices, tolerance=tolerance)


def _compare(
    actual: Sequence[Array], expected: Sequence[Array], *, choices: bool, tolerance: float
) -> Metrics:
    pairs = list(_wide_pairs(actual, expected))
    dot = sum(float((a * e).sum()) for a, e in pairs)
    norms = np.sqrt(
        sum(float((a**2).sum()) for a, _ in pairs) * sum(float((e**2).sum()) for _, e in pairs)
    )
    rows = sum(len(e) for _, e in pairs)
    agreed, tied, clear = _top1(pairs, tolerance) if choices else (0, 0, 0)
    return Metrics(
        max_abs=max((float(np.abs(a - e).max()) for a, e in pairs if e.size), default=0.0),
        relative_l2=relative_l2(actual, expected),
        cosine=float(dot / norms) if norms > 0 else 1.0,
        top1_agreement=agreed / rows if choices and rows else None,
        top1_near_ties=tied,
        top1_clear_disagreements=clear,
        mean_kl=_mean_kl(pairs, rows) if choices and rows else None,
        rows=rows,
        finite=all(bool(np.isfinite(a).all()) for a, _ in pairs),
    )


def _wide_pairs(
    actual: Sequence[Array], expected: Sequence[Array]
) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    return [
        (a.astype(np.float64), e.astype(np.float64)) for a, e in zip(actual, expected, strict=True)
    ]


def _top1(
    pairs: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], tolerance: float
) -> tuple[int, int, int]:
    """Count rows whose top-1 agrees, disagrees at a near tie, disagrees clearly."""
    agreed = tied = clear = 0
    for a, e in pairs:
        ours, theirs = a.argmax(axis=-1), e.argmax(axis=-1)
        index = np.arange(len(e))
        margin = e[index, theirs] - e[index, ours]
        scale = np.sqrt((e**2).mean(axis=-1))
        differs = ours != theirs
        near = is_near_tie(margin, tolerance, of="row", scale=scale)
        agreed += int((~differs).sum())
        tied += int((differs & near).sum())
        clear += int((differs & ~near).sum())
    return agreed, tied, clear


def _log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _mean_kl(
    pairs: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], rows: int
) -> float:
    total = 0.0
    for a, e in pairs:
        p, q = _log_softmax(e), _log_softmax(a)
        total += float((np.exp(p) * (p - q)).sum())
    return max(total / rows, 0.0)
