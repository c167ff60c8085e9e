"""The quantization that a recipe asks for, applied to the graph of a build."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lora_export.commands.build_float4 import not_stored_so
from lora_export.commands.quantize_choice import choice_of
from lora_export.core.modes import SHARED_MODES
from lora_export.graph.quantize.quantized_template import quantize_template
from lora_export.graph.quantize.schemes import class_heads, without_blocks
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.runtime.ort import require_onnxruntime
from lora_export.verification.product_moments import require_text_inputs
from lora_export.weights.quantization.methods import METHODS
from lora_export.weights.quantized.carried import stores_zero_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.resolve import Update
    from lora_export.commands.recipe import QuantizeSpec, Recipe
    from lora_export.commands.resolved_adapters import ResolvedAdapter
    from lora_export.core.parameters import Parameter
    from lora_export.core.progress import Progress
    from lora_export.core.tensors import Tensor
    from lora_export.graph.quantize.schemes import QuantizeChoice
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import GraphTemplate

__all__ = [
    "quantized",
    "tell_kept",
    "tell_without_blocks",
]

_SHOWN = 3


def require_inputs(spec: QuantizeSpec, template: GraphTemplate) -> None:
    """Require that a graph can be run for a method that needs to see the inputs of products.

    Raises:
        UnsupportedError: It does not take text alone.
        MissingRuntimeError: ONNX Runtime is not installed.
    """
    if not METHODS[spec.method].needs_inputs:
        return
    require_onnxruntime()
    signature = read_signature(parse_onnx(template.onnx_bytes))
    graphs = 1 if template.encoder_bytes is None else 2
    require_text_inputs(signature.input_names, graphs=graphs)


def quantized(
    recipe: Recipe,
    task: Task,
    template: GraphTemplate,
    adapters: Sequence[ResolvedAdapter],
    tell: Progress,
    *,
    sources: Mapping[str, Tensor] | None = None,
    zero_points: bool = False,
) -> tuple[GraphTemplate, tuple[ResolvedAdapter, ...]]:
    """Return the template quantized as the recipe asks, and the adapters resolved against it.

    Heads of classes stay as they are, and in a graph that adapters share whatever they carry whole
    or look up; see `_carried`.

    Args:
        recipe: What to build.
        task: Its task.
        template: The float graph.
        adapters: The adapters.
        tell: Told which matrices stay as they are.
        sources: The tensors of a quantized base by the parameters' names, whose integers and
            codes the graph may have.
        zero_points: Whether it may have their zero points too. A weight that is merged is
            quantized again, without any, and TensorRT reads none.

    Raises:
        UnsupportedError: Nothing can be quantized, the opset is too old, or the method runs the
            model on text and it takes something else.
    """
    if recipe.quantize is None:
        return template, tuple(adapters)
    require_inputs(recipe.quantize, template)
    names = [each.name for each in template.parameters]
    required = class_heads(task.label_parameters, names)
    if recipe.mode in SHARED_MODES:
        required |= _carried(adapters)
    stored = sources or {}
    required |= not_stored_so(recipe.quantize, stored)
    found = quantize_template(
        template,
        choice_of(recipe.quantize),
        tokens=task.scores_tokens,
        required=required,
        with_zero_points=partial(_stored_with_zeros, stored if zero_points else {}),
    )
    tell_kept(found.kept, tell)
    tell_without_blocks(choice_of(recipe.quantize), found.template.parameters, tell)
    parameters = {each.name: each for each in found.template.parameters}
    rebound = tuple(
        replace(
            each,
            resolved=replace(
                each.resolved,
                updates=tuple(_rebound(update, parameters) for update in each.resolved.updates),
            ),
        )
        for each in adapters
    )
    return found.template, rebound


def _stored_with_zeros(sources: Mapping[str, Tensor], parameter: Parameter) -> bool:
    source = sources.get(parameter.name)
    return source is not None and stores_zero_points(source, parameter)


def _rebound(update: Update, parameters: Mapping[str, Parameter]) -> Update:
    """Return an update of a parameter as it is quantized; it may have rows of its own."""
    shape = update.parameter.shape
    return replace(update, parameter=replace(parameters[update.parameter.name], shape=shape))


def _carried(adapters: Sequence[ResolvedAdapter]) -> dict[str, str]:
    """Return the parameters that adapters of one graph bring: its inputs, or stacks.

    These are what they carry whole, and embeddings, whose rows they update.
    """
    return {
        update.parameter.name: f"adapter {each.resolved.adapter.name!r} brings its own"
        for each in adapters
        for update in each.resolved.updates
        if update.saved is not None
        or update.added is not None
        or update.parameter.module_type == "Embedding"
    }


def tell_kept(kept: Mapping[str, str], tell: Progress) -> None:
    """Say which matrices stay as they are, and why; the report lists all."""
    _tell_reasons("not quantized", kept, tell)


def tell_without_blocks(
    choice: QuantizeChoice, parameters: Sequence[Parameter], tell: Progress
) -> None:
    """Say which weights are int8 with a scale per output where blocks were asked for, and why."""
    if choice.needs_blocks:
        _tell_reasons("int8 with a scale per output", without_blocks(parameters), tell)


def _tell_reasons(what: str, names_and_reasons: Mapping[str, str], tell: Progress) -> None:
    """Say what holds for parameters, those with the same reason in one line."""
    reasons: dict[str, list[str]] = {}
    for name, reason in names_and_reasons.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        tell.note(f"note: {what}: {', '.join(names[:_SHOWN])}{more}: {reason}")
