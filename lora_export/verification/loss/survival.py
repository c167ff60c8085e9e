"""Survival of an adapter in a quantized graph, measured on outputs: pure NumPy, float64.

With the outputs of four models on the same inputs, padding left out:

    e = float adapter − float base              what the adapter does
    ê = quantized adapter − quantized base      what is left of it

    gain    = ⟨ê, e⟩ / ‖e‖²                     1: as strong as it was; 0: gone
    cosine  = ⟨ê, e⟩ / (‖ê‖ ‖e‖)                1: nothing but the adapter

The error that quantization makes in the base is in both terms of ê and leaves it. The intervals are
a bootstrap over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.judge.tolerances import NO_EFFECT
from lora_export.verification.datasets.paired import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FourOutputs", "Survival", "measure_survival"]

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

_FEWEST_ROWS: Final = 2
"""One row has no interval."""


@dataclass(frozen=True)
class FourOutputs:
    """The compared rows of four models, one array ``[n, width]`` per input.

    Attributes:
        adapter: The adapter on the float base; the reference.
        base: The float base without the adapter's low-rank part.
        quantized_adapter: The adapter on the quantized base.
        quantized_base: The quantized base without the adapter's low-rank part.
    """

    adapter: Sequence[Array]
    base: Sequence[Array]
    quantized_adapter: Sequence[Array]
    quantized_base: Sequence[Array]


@dataclass(frozen=True)
class Survival:
    """Survival of an adapter's effect on the outputs.

    Attributes:
        effect: ‖e‖ / ‖float adapter‖, what there is to survive.
        gain: ⟨ê, e⟩ / ‖e‖²; None where there is no effect, or a number is not finite.
        gain_interval: Its 95 % interval over rows; None for a single row.
        cosine: ⟨ê, e⟩ / (‖ê‖ ‖e‖), 0 where nothing is left; None as for `gain`.
        cosine_interval: Its interval.
        rows: How many rows were compared.
        finite: Whether all outputs of the quantized models are finite.
    """

    effect: float
    gain: float | None
    gain_interval: tuple[float, float] | None
    cosine: float | None
    cosine_interval: tuple[float, float] | None
    rows: int
    finite: bool


def measure_survival(outputs: FourOutputs, *, seed: int = 0) -> Survival:
    """Return what quantization has left of the adapter.

    Args:
        outputs: The outputs of the four models.
        seed: Seeds the bootstrap.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # `finite` says what they would
        sums = _row_sums(outputs)
        size = sum(float((_wide(each) ** 2).sum()) for each in outputs.adapter)
    quantized = (*outputs.quantized_adapter, *outputs.quantized_base)
    finite = all(bool(np.isfinite(each).all()) for each in quantized)
    effect = _ratio(float(sums[:, 1].sum()), size)
    if not effect >= NO_EFFECT or not np.isfinite(sums).all():
        return Survival(effect, None, None, None, None, len(sums), finite)
    several = len(sums) >= _FEWEST_ROWS
    return Survival(
        effect=effect,
        gain=float(_gain(sums.sum(0))),
        gain_interval=bootstrap_interval(sums, _gain, seed=seed) if several else None,
        cosine=float(_cosine(sums.sum(0))),
        cosine_interval=bootstrap_interval(sums, _cosine, seed=seed) if several else None,
        rows=len(sums),
        finite=finite,
    )


def _row_sums(outputs: FourOutputs) -> Float64Array:
    """Return ⟨ê, e⟩, ‖e‖² and ‖ê‖² of each row, ``[rows, 3]``."""
    found = [np.zeros((0, 3))]
    for parts in zip(
        outputs.adapter,
        outputs.base,
        outputs.quantized_adapter,
        outputs.quantized_base,
        strict=True,
    ):
        adapter, base, quantized_adapter, quantized_base = map(_wide, parts)
        effect, left = adapter - base, quantized_adapter - quantized_base
        pairs = ((left, effect), (effect, effect), (left, left))
        found.append(np.stack([np.einsum("ij,ij->i", *pair) for pair in pairs], axis=1))
    return np.concatenate(found)


def _wide(rows: Array) -> Float64Array:
    """Return rows ``[n, width]`` in float64; further axes are flattened."""
    return rows.reshape(len(rows), -1).astype(np.float64)


def _ratio(squared: float, size_squared: float) -> float:
    """Return the root of a ratio; zero over zero is 0, anything over zero infinite."""
    if size_squared == 0.0:
        return 0.0 if squared == 0.0 else float("inf")
    return float(np.sqrt(squared / size_squared))


def _gain(sums: Float64Array) -> Float64Array:
    return _divided(sums[..., 0], sums[..., 1])


def _cosine(sums: Float64Array) -> Float64Array:
    return _divided(sums[..., 0], np.sqrt(sums[..., 1] * sums[..., 2]))


def _divided(above: Float64Array, below: Float64Array) -> Float64Array:
    """Return a quotient; 0 where nothing is divided."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
