"""The quantized weights of a graph, compared with the float ones that PEFT merges.

    steps      the largest |clip(W / s) − q| of a parameter: at most ½ where q is W rounded to
               nearest, 1 where it may be rounded up or down; where W was rounded to the dtype of
               the scales before, that rounding is taken off
    layers     errors, and what is left of the update (`layer_survival`)

W comes from torch, q and s from the export's files: no code of the merge takes part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.four_bit_floats import HALF_GAPS
from lora_export.core.reports.quantization_report import LayerLossRow, WeightsLinkRow
from lora_export.verification.loss.layer_survival import (
    LayerMeter,
    LayerSurvival,
    Pair,
    WeightError,
)
from lora_export.weights.dequantized import DequantizedTensor, dequantized_tensor
from lora_export.weights.quantization.ranges import integer_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.runtime.reference_weights import ReferenceWeights

    Array = npt.NDArray[Any]

__all__ = ["StoredLayers", "measure_layers", "stored_value"]

_HALF_STEP: Final = 0.5
_ROUNDING_STEPS: Final = 1e-3
"""The error of float32 sums in another order, in steps of a scale."""
_UNITS: Final = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The largest relative error of rounding to a dtype."""
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class StoredLayers:
    """The comparison of a graph's quantized weights.

    Attributes:
        rows: The figures of each, for the report.
        link: Whether the integers are those of the weights.
    """

    rows: Mapping[str, LayerLossRow]
    link: WeightsLinkRow


@dataclass(frozen=True)
class _Layer:
    """One weight in the graph's layout: what it should be, and what is stored.

    Attributes:
        exact: What was quantized.
        other: The same weight with the update where `exact` is without, or without it.
        stored: What is stored.
        stored_base: What is stored of the base; None where that has another shape, or none.
        factors: Two matrices that span the update.
    """

    exact: Array
    other: Array
    stored: DequantizedTensor
    stored_base: DequantizedTensor | None
    factors: tuple[Array, Array] | None


@dataclass(frozen=True)
class _Steps:
    """The largest distance of a parameter's integers from its weights, and what it may be."""

    distance: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether it is within the limit; NaN is not."""
        return self.distance <= self.limit

    @property
    def order(self) -> tuple[bool, float]:
        """The key by which the worst of several is found."""
        return math.isnan(self.distance), self.distance / self.limit


def measure_layers(
    parameters: Sequence[Parameter],
    weights: ReferenceWeights,
    base: Mapping[str, Tensor],
    own: Mapping[str, Tensor] | None,
    *,
    steps_of_blocks: float = _HALF_STEP,
) -> StoredLayers:
    """Compare the quantized weights of a graph with those of the reference.

    Args:
        parameters: The quantized parameters.
        weights: The reference's weights, the adapter not merged.
        base: The tensors of the base's file.
        own: Those of the graph of a merged adapter, the base's among them; None where the base's
            integers are all that there is.
        steps_of_blocks: How far the method leaves an integer of a block from ``W / s``.

    Raises:
        UnsupportedError: The reference has no such parameter.
        ExportDirectoryError: The files' tensors are not those of the parameters.
    """
    rows: dict[str, LayerLossRow] = {}
    steps: dict[str, _Steps] = {}
    for parameter in parameters:
        layer = _layer(parameter, weights, base, own)
        if layer is None:
            continue
        quantized = layer.stored.quantized
        limit = _ROUNDING_STEPS + (steps_of_blocks if quantized.block_size else _HALF_STEP)
        if quantized.floats is not None:
            limit = _ROUNDING_STEPS + HALF_GAPS[quantized.floats]
        found, distance = _measured(layer, limit, merged=own is not None)
        steps[parameter.name] = _Steps(distance, limit)
        rows[parameter.name] = LayerLossRow(
            scheme=quantized.scheme,
            block_size=quantized.block_size,
            relative_error=found.error.relative_error,
            error_over_delta=found.error.error_over_delta,
            gain=found.gain,
            cosine=found.cosine,
        )
    return StoredLayers(rows, _link(steps))


def stored_value(
    parameter: Parameter, stored: Mapping[str, Tensor], shape: tuple[int, ...]
) -> Array | None:
    """Return the values that stored integers stand for, in the model's layout; None without any.

    Args:
        parameter: The quantized parameter.
        stored: The tensors of a graph's files.
        shape: The parameter's shape in the model.
    """
    turned = parameter.transposed
    found = dequantized_tensor(parameter, stored, shape[::-1] if turned else shape)
    if found is None:
        return None
    values = found.rows(0, found.shape[0])
    return values.T if turned else values


def _layer(
    parameter: Parameter,
    weights: ReferenceWeights,
    base: Mapping[str, Tensor],
    own: Mapping[str, Tensor] | None,
) -> _Layer | None:
    name, turned = parameter.name, parameter.transposed
    exact, other = weights.value(name), weights.merged(name)
    if own is not None:
        exact, other = other, exact
    shape = exact.shape[::-1] if turned else exact.shape
    stored = dequantized_tensor(parameter, own if own is not None else base, shape)
    if stored is None:
        return None
    factors = weights.factors(name)
    if turned and factors is not None:
        factors = factors[1].T, factors[0].T
    same = shape == parameter.stored_shape
    return _Layer(
        exact=exact.T if turned else exact,
        other=other.T if turned else other,
        stored=stored,
        stored_base=dequantized_tensor(parameter, base) if same else None,
        factors=factors,
    )


def _measured(layer: _Layer, limit: float, *, merged: bool) -> tuple[LayerSurvival, float]:
    """Return the figures of a weight, and its largest distance from rounding, in steps."""
    has_meter = merged and layer.factors is not None and layer.stored_base is not None
    meter = LayerMeter(*layer.factors) if has_meter and layer.factors is not None else None
    error = weight = delta = 0.0
    worst: tuple[float, ...] = (0.0, 0.0)
    for rows in _pieces(layer.exact):
        exact = np.ascontiguousarray(layer.exact[rows])
        quantized = layer.stored.rows(rows.start, rows.stop)
        found = _steps(layer.stored, exact, rows, limit)
        worst = tuple(map(_larger, worst, found))
        if meter is not None and layer.stored_base is not None:
            plain = layer.stored_base.rows(rows.start, rows.stop)
            meter(rows.start, Pair(layer.other[rows], plain), Pair(exact, quantized))
            continue
        error += _squares(quantized - exact.astype(np.float64))
        weight += _squares(exact)
        delta += _squares(layer.other[rows] - exact.astype(np.float64))
    if meter is not None:
        return meter.result(), _best(worst, limit)
    size = delta if layer.factors is not None else None
    return LayerSurvival(WeightError(error, weight, size), None, None), _best(worst, limit)


def _best(worst: tuple[float, ...], limit: float) -> float:
    """Return the distance of weights that were not rounded before, or that of others."""
    plain, rounded = worst
    return rounded if plain > limit >= rounded else plain


def _steps(
    stored: DequantizedTensor, exact: Array, rows: slice, limit: float
) -> tuple[float, float]:
    """Return max|clip(W / s + z) − q| of some rows, and the same without a rounding of W before.

    Values of four-bit floats, from −1 to 1, stand where integers do.

    A float export in half precision that is quantized later holds rounded weights: W is off by up
    to a unit of its dtype, which is ``u·|W / s|`` steps.
    """
    integers = integer_range(stored.quantized.bits)
    lowest, highest = integers.lowest, integers.highest
    if stored.quantized.floats is not None:
        lowest, highest = -1, 1
    unit = _UNITS.get(stored.scales.dtype.name, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        place = exact.astype(np.float64) / stored.scales_of(rows.start, rows.stop)
        place += stored.zeros_of(rows.start, rows.stop)
        np.clip(place, lowest, highest, out=place)
        distance = np.abs(place - stored.integers_of(rows.start, rows.stop))
        plain = float(distance.max(initial=0.0))
        if not unit or plain <= limit:
            return plain, plain
        distance -= unit * np.abs(place)
        return plain, float(distance.max(initial=0.0))


def _larger(one: float, other: float) -> float:
    """Return the larger number; NaN where one is NaN."""
    return other if math.isnan(other) or other > one else one


def _squares(values: Array) -> float:
    wide = values.astype(np.float64)
    return float(np.vdot(wide, wide))


def _pieces(matrix: Array) -> Iterator[slice]:
    step = max(1, _PIECE // max(matrix.shape[1], 1))
    for start in range(0, len(matrix), step):
        yield slice(start, min(start + step, len(matrix)))


def _link(steps: Mapping[str, _Steps]) -> WeightsLinkRow:
    """Return the verdict on the integers of all parameters."""
    differing = sorted(name for name, each in steps.items() if not each.passes)
    worst = max(steps, key=lambda name: steps[name].order, default=None)
    found = steps[worst] if worst is not None else _Steps(math.nan, _HALF_STEP + _ROUNDING_STEPS)
    reason = "the stored integers are the weights that PEFT merges, rounded"
    if differing:
        reason = f"the integers of {differing[0]!r} are not those of the weights that PEFT merges"
    return WeightsLinkRow(
        verdict="fail" if differing else "pass" if steps else "unverified",
        reason=reason if steps else "nothing is quantized",
        compared=len(steps),
        worst=worst,
        steps=found.distance if math.isfinite(found.distance) else None,
        tolerance=found.limit,
        differing=differing,
    )
