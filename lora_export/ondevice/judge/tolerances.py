"""Tolerances by dtype: one table, one judgement.

A graph passes if its relative L2 error is within the tolerance of its dtype *and* at most a
twentieth of what the adapter does. An adapter without a measurable effect proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from lora_export.ondevice.device_errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from lora_export.ondevice.judge.metrics import Metrics

__all__ = ["RELATIVE_L2", "Verdict", "judge", "tolerance_of", "worst_of"]

Verdict = Literal["pass", "fail", "ambiguous", "unverified"]

_WORST_FIRST: Final[tuple[Verdict, ...]] = ("fail", "ambiguous", "unverified")

RELATIVE_L2: Final[dict[str, float]] = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
"""Largest relative L2 error, by the dtype of the graph's weights."""

EFFECT_SHARE: Final = 0.05
"""Largest error as a share of the adapter's effect."""

NO_EFFECT: Final = 1e-6
"""An effect below this, relative L2, is float32 noise."""


def tolerance_of(dtype: str) -> float:
    """Return the largest relative L2 error for a graph of `dtype`.

    Raises:
        UnsupportedError: The dtype has no tolerance; it is verified by task metric only.
    """
    if dtype not in RELATIVE_L2:
        msg = f"no tolerance is set for {dtype}"
        raise UnsupportedError(msg, hint=f"Known: {', '.join(RELATIVE_L2)}.")
    return RELATIVE_L2[dtype]


def judge(
    metrics: Metrics, *, dtype: str, effect: float | None, allow_no_effect: bool = False
) -> tuple[Verdict, str]:
    """Return the verdict on a graph and its reason.

    Args:
        metrics: The graph against the reference.
        dtype: The dtype of the graph's weights.
        effect: Relative L2 between the reference and the same model with LoRA scale 0; None for a
            graph without an adapter.
        allow_no_effect: Whether an adapter may change nothing.
    """
    error, tolerance = metrics.relative_l2, tolerance_of(dtype)
    measurable = effect is None or effect >= NO_EFFECT
    limit = EFFECT_SHARE * effect if effect is not None and measurable else None
    findings: tuple[tuple[bool, Verdict, str], ...] = (
        (metrics.rows == 0, "fail", "nothing was compared"),
        (not metrics.finite, "fail", "the graph returns NaN or infinity"),
        (
            not error <= tolerance,
            "fail",
            f"relative L2 error {error:.3g} is above the tolerance {tolerance:.3g}",
        ),
        (
            not measurable and not allow_no_effect,
            "fail",
            f"the adapter has no measurable effect ({effect or 0:.3g}): nothing is proven",
        ),
        (
            limit is not None and error > limit,
            "fail",
            f"relative L2 error {error:.3g} is above {EFFECT_SHARE} of the effect {effect}",
        ),
        (
            metrics.top1_clear_disagreements > 0,
            "fail",
            f"{metrics.top1_clear_disagreements} top-1 choices differ clearly",
        ),
        (
            metrics.top1_near_ties > 0,
            "ambiguous",
            f"{metrics.top1_near_ties} near-tied top-1 choices fall differently",
        ),
    )
    for applies, verdict, reason in findings:
        if applies:
            return verdict, reason
    return "pass", "within the tolerance of the dtype and of the adapter's effect"


def worst_of(verdicts: Collection[Verdict]) -> Verdict:
    """Return the worst of some verdicts; ``pass`` where there are none."""
    return next((each for each in _WORST_FIRST if each in verdicts), "pass")
