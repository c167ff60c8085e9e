"""The outputs of torch for a quantized graph: of the float weights, and of the stored ones.

One model serves both: its weights are replaced by what the stored integers stand for. Of a merged
adapter PEFT merges the updates first, so that what is not quantized is PEFT's too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from lora_export.core.files import resolve_inside
from lora_export.core.modes import Mode
from lora_export.core.safetensors_file import read_header
from lora_export.exports.stored_values import method_of, parameters_of
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.runtime.reference_weights import ReferenceWeights
from lora_export.verification.datasets.dataset import predict
from lora_export.verification.datasets.questions import RecomputingModel
from lora_export.verification.expected import rows_of
from lora_export.verification.loss.stored_layers import measure_layers, stored_value
from lora_export.weights.quantization.methods import steps_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.runtime.reference import Reference
    from lora_export.verification.comparison import Comparison
    from lora_export.verification.datasets.dataset import Dataset
    from lora_export.verification.datasets.questions import Answers
    from lora_export.verification.expected import Expected
    from lora_export.verification.loss.stored_layers import StoredLayers

__all__ = ["FloatOutputs", "QuantizedReferences", "run_references"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FloatOutputs:
    """The float model's outputs, the same without the update, and answers to a data set."""

    outputs: list[Array]
    plain: list[Array] | None
    answers: Answers | None
    base_answers: Answers | None


@dataclass(frozen=True)
class QuantizedReferences:
    """The outputs of torch with float weights and with those that are stored.

    Attributes:
        exact: With the float weights.
        layers: The stored weights against them.
        expected: With the stored weights.
        plain: With the stored weights, without the adapter's update.
    """

    exact: FloatOutputs
    layers: StoredLayers
    expected: Expected
    plain: list[Array] | None


def run_references(comparison: Comparison, dataset: Dataset | None) -> QuantizedReferences:
    """Run torch with the float weights, then with the stored ones; close it."""
    of = comparison.choice
    merged = of.record.mode is Mode.MERGED
    quantized = [each for each in parameters_of(of.manifest) if each.quantized is not None]
    base = _tensors(comparison, of.manifest.base_graph.weights)
    own = _tensors(comparison, of.record.weights) if merged else None
    reference = comparison.open_reference()
    try:
        exact = _run_float(comparison, reference, dataset)
        weights = ReferenceWeights(reference)
        steps = steps_of(method_of(of.manifest))
        layers = measure_layers(quantized, weights, base, own, steps_of_blocks=steps)
        brought = weights.known_names(_brought(of.adapter))
        _load_without_update(weights, quantized, base, base if own is None else own, brought)
        plain = _without_update(comparison, reference) if of.adapter is not None else None
        if own is not None:
            weights.merge_all()
            for each in quantized:
                _replace(weights, each, own)
    except BaseException:
        reference.close()
        raise
    expected = comparison.run_reference(reference, None, has_adapter=False)
    effect = None
    if exact.plain is not None:
        sides = (rows_of(each, comparison.cases, of.task) for each in (exact.plain, exact.outputs))
        effect = relative_l2(*sides)
    return QuantizedReferences(exact, layers, replace(expected, effect=effect), plain)


def _run_float(
    comparison: Comparison, reference: Reference, dataset: Dataset | None
) -> FloatOutputs:
    names = dataset.reading.signature.input_names if dataset is not None else ()
    asked = RecomputingModel(reference.run, names)
    outputs = _outputs(comparison, reference)
    answers = predict(dataset, asked) if dataset is not None else None
    if comparison.choice.adapter is None:
        return FloatOutputs(outputs, None, answers, None)
    with reference.without_low_rank():
        plain = _outputs(comparison, reference)
        base_answers = predict(dataset, asked) if dataset is not None else None
    return FloatOutputs(outputs, plain, answers, base_answers)


def _outputs(comparison: Comparison, reference: Reference) -> list[Array]:
    positions = slice(-1, None) if comparison.choice.last else slice(None)
    return [reference.run(case.feeds)[:, positions] for case in comparison.cases]


def _without_update(comparison: Comparison, reference: Reference) -> list[Array]:
    with reference.without_low_rank():
        return _outputs(comparison, reference)


def _load_without_update(
    weights: ReferenceWeights,
    quantized: Sequence[Parameter],
    base: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    brought: AbstractSet[str],
) -> None:
    """Replace the model's weights by the stored ones of the base, and of the rest of the adapter.

    Args:
        weights: The model's, the updates not merged.
        quantized: The parameters.
        base: The tensors of the base's file.
        own: Those of the adapter's graph, with the base's.
        brought: What the adapter brings whole or in rows. Where it updates that too, nothing is
            stored of it without the update: it stays in float.
    """
    for parameter in quantized:
        name = parameter.name
        shape = weights.value(name).shape
        has_update = weights.has_update(name)
        is_brought = not brought.isdisjoint(weights.known_names([name]))
        if has_update and (shape != parameter.shape or is_brought):
            continue
        _replace(weights, parameter, base if has_update else own)


def _replace(weights: ReferenceWeights, parameter: Parameter, stored: Mapping[str, Tensor]) -> None:
    """Replace a weight by what the stored integers stand for, under each of its names."""
    values = stored_value(parameter, stored, weights.value(parameter.name).shape)
    if values is not None:
        for name in weights.names_of(parameter):
            weights.replace(name, values)


def _brought(adapter: Adapter | None) -> frozenset[str]:
    """Return the parameters that an adapter brings whole or in rows, by the adapter's names."""
    if adapter is None:
        return frozenset()
    rows = (each.parameter for each in adapter.rows)
    return frozenset((*(each.parameter for each in adapter.saved), *rows))


def _tensors(comparison: Comparison, files: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of some weight files; those of later ones win."""
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_header(resolve_inside(comparison.choice.export_dir, file))[0]
    return found
