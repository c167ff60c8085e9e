"""The gates of quantization loss: which limits there are, and the verdict on what was measured.

    min_gain, max_gain    the adapter is about as strong as it was             adapters only
    min_cosine            its effect has the same direction                    adapters only
    max_loss              ‖quantized − float‖ / ‖float‖ of the outputs         where it is given
    max_metric_drop       what the score on a data set loses                   where it is given

A figure outside its limit fails. One inside whose interval reaches outside is ambiguous: other
inputs might have failed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.reports.quantization_report import GateRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.core.reports.quantization_report import LayerLossRow, LossRow, LossVerdict

__all__ = [
    "LossGates",
    "MetricDrop",
    "judge_loss",
    "summarize",
    "weakest_layers",
    "worst_loss",
]

Interval = tuple[float, float]

_WORST_FIRST: Final[tuple[LossVerdict, ...]] = ("fail", "ambiguous", "pass")
_OF_ADAPTERS: Final = frozenset({"min_gain", "max_gain", "min_cosine"})
_AT_LEAST: Final = frozenset({"min_gain", "min_cosine"})
_NAMED: Final = 3


@dataclass(frozen=True)
class LossGates:
    """The limits.

    Attributes:
        min_gain: The smallest gain of an adapter.
        max_gain: The largest.
        min_cosine: The smallest cosine.
        max_loss: The largest relative L2 error of the outputs; None for any.
        max_metric_drop: The most that the metric may lose; None for any.
    """

    min_gain: float = 0.8
    max_gain: float = 1.25
    min_cosine: float = 0.8
    max_loss: float | None = None
    max_metric_drop: float | None = None


@dataclass(frozen=True)
class MetricDrop:
    """The loss of a metric by quantization; negative where it is better than before.

    Attributes:
        value: The drop, in the metric's own unit; relative for a perplexity, which rises.
        interval: Its 95 % interval.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class _Figure:
    """A figure compared with one limit."""

    gate: str
    what: str
    value: float | None
    interval: Interval | None
    limit: float
    at_least: bool = False


def judge_loss(
    gates: LossGates, loss: LossRow, *, has_adapter: bool, drop: MetricDrop | None = None
) -> list[GateRow]:
    """Return the verdict of each gate that there is something to hold against.

    Args:
        gates: The limits.
        loss: What was measured on outputs.
        has_adapter: Whether the graph has an adapter, which is to survive.
        drop: What the metric on a data set loses; None where none was scored.
    """
    return [_judged(each) for each in _figures(gates, loss, has_adapter=has_adapter, drop=drop)]


def _figures(
    gates: LossGates, loss: LossRow, *, has_adapter: bool, drop: MetricDrop | None
) -> Iterator[_Figure]:
    has_effect = loss.gain is not None or not loss.finite
    if has_adapter and has_effect:
        gain = ("gain", loss.gain, loss.gain_interval)
        yield _Figure("min_gain", *gain, gates.min_gain, at_least=True)
        yield _Figure("max_gain", *gain, gates.max_gain)
        cosine = ("cosine", loss.cosine, loss.cosine_interval)
        yield _Figure("min_cosine", *cosine, gates.min_cosine, at_least=True)
    if gates.max_loss is not None:
        yield _Figure("max_loss", "relative L2 error", loss.relative_l2, None, gates.max_loss)
    if gates.max_metric_drop is not None and drop is not None:
        dropped = ("drop of the metric", drop.value, drop.interval)
        yield _Figure("max_metric_drop", *dropped, gates.max_metric_drop)


def _judged(figure: _Figure) -> GateRow:
    verdict, reason = _verdict(figure)
    value = figure.value
    known = value is not None and math.isfinite(value)
    return GateRow(
        gate=figure.gate,
        limit=figure.limit,
        value=value if known else None,
        interval=figure.interval,
        verdict=verdict,
        reason=reason,
    )


def _verdict(figure: _Figure) -> tuple[LossVerdict, str]:
    value, limit, what = figure.value, figure.limit, figure.what
    side = "below" if figure.at_least else "above"
    if value is None or not math.isfinite(value):
        return "fail", f"the {what} is not finite"
    if _is_outside(value, limit, at_least=figure.at_least):
        return "fail", f"the {what} {value:.3g} is {side} {limit:g}"
    if figure.interval is not None and any(
        _is_outside(each, limit, at_least=figure.at_least) for each in figure.interval
    ):
        low, high = figure.interval
        shown = f"[{low:.3g}, {high:.3g}]"
        return "ambiguous", f"the interval {shown} of the {what} reaches {side} {limit:g}"
    return "pass", f"the {what} {value:.3g} is not {side} {limit:g}"


def _is_outside(value: float, limit: float, *, at_least: bool) -> bool:
    return not value >= limit if at_least else not value <= limit


def summarize(
    rows: Sequence[GateRow],
    loss: LossRow,
    layers: Mapping[str, LayerLossRow],
    *,
    adapter: str | None,
) -> tuple[LossVerdict, str]:
    """Return the verdict of all gates together, and its reason.

    Args:
        rows: The verdict of each.
        loss: What was measured on outputs.
        layers: The quantized parameters; the weakest are named where the adapter does not survive.
        adapter: The adapter's name; None for the base.
    """
    if not loss.finite:
        return "fail", "the quantized graph returns NaN or infinity"
    verdict = worst_loss([row.verdict for row in rows])
    if verdict == "ungated":
        silent = adapter is not None and loss.gain is None
        nothing = f"the adapter {adapter!r} has no measurable effect: nothing is to survive"
        return verdict, nothing if silent else "no limit was set"
    if verdict == "pass":
        return verdict, "; ".join(_said(rows, adapter)) or "within every limit"
    found = [row for row in rows if row.verdict == verdict]
    reasons = "; ".join(row.reason for row in found)
    drowned = adapter is not None and any(row.gate in _OF_ADAPTERS for row in found)
    if not drowned:
        return verdict, reasons
    fate = "does not survive" if verdict == "fail" else "may not survive"
    named = ", ".join(weakest_layers(layers))
    where = f"; weakest layers: {named}" if named else ""
    if (hidden := _hidden_by_session(rows, loss)) is not None:
        where = f"; {hidden}"
    return verdict, f"the adapter {adapter!r} {fate} quantization: {reasons}{where}"


def _hidden_by_session(rows: Sequence[GateRow], loss: LossRow) -> str | None:
    """Return what to say where the stored weights hold the adapter, and the session loses it."""
    if loss.exact_gain is None or loss.exact_cosine is None:
        return None
    exact = {
        "min_gain": loss.exact_gain, "max_gain": loss.exact_gain, "min_cosine": loss.exact_cosine,
    }  # fmt: skip
    kept = all(
        not _is_outside(exact[row.gate], row.limit, at_least=row.gate in _AT_LEAST)
        for row in rows
        if row.gate in _OF_ADAPTERS
    )
    if not kept:
        return None
    return (
        f"the stored weights hold it (gain {loss.exact_gain:.3g}, cosine {loss.exact_cosine:.3g}): "
        "its effect is smaller than what the session rounds off; open it with "
        "session.qdq_matmulnbits_accuracy_level 0"
    )


def _said(rows: Sequence[GateRow], adapter: str | None) -> Iterator[str]:
    """Yield what is good, in words."""
    if adapter is not None and any(row.gate in _OF_ADAPTERS for row in rows):
        yield "the adapter survives"
    yield from (row.reason for row in rows if row.gate not in _OF_ADAPTERS)


def weakest_layers(layers: Mapping[str, LayerLossRow], count: int = _NAMED) -> list[str]:
    """Return the parameters in which least of the adapter is left, the weakest first.

    Where nothing is known of the adapter, these are the ones with the largest errors.
    """
    return sorted(layers, key=lambda name: (*_strength(layers[name]), name))[:count]


def _strength(layer: LayerLossRow) -> tuple[float, float]:
    """Return what a parameter is ordered by: how much of the adapter it holds, then its error."""
    error = layer.error_over_delta if layer.error_over_delta is not None else layer.relative_error
    held = math.inf
    if layer.gain is not None and layer.cosine is not None:
        held = min(layer.cosine, layer.gain, 1 / layer.gain if layer.gain > 0 else layer.gain)
    return held, -(error if error is not None else math.inf)


def worst_loss(verdicts: Sequence[LossVerdict]) -> LossVerdict:
    """Return the worst of some verdicts; ``ungated`` where nothing was judged."""
    return next((each for each in _WORST_FIRST if each in verdicts), "ungated")
