"""The quantization that a recipe asks for, applied to the graph of a build."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_export.commands.build_float4 import not_stored_so
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.four_bit_floats import float4_of
from lora_export.core.modes import SHARED_MODES
from lora_export.core.quantization import ALL_INPUTS, BLOCK_SIZES, INT8_BLOCK
from lora_export.core.quantization_record import QuantizationRecord
from lora_export.graph.quantize.quantized_template import BLOCKS_OPSET, quantize_template
from lora_export.graph.quantize.schemes import QuantizeChoice, class_heads, without_blocks
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.runtime.ort import require_onnxruntime
from lora_export.verification.product_moments import require_text_inputs
from lora_export.weights.quantization.methods import DEFAULT_METHOD, METHODS, NEAREST
from lora_export.weights.quantized.carried import stores_zero_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.resolve import Update
    from lora_export.commands.recipe import QuantizeSpec, Recipe
    from lora_export.commands.resolved_adapters import ResolvedAdapter
    from lora_export.core.parameters import Parameter
    from lora_export.core.progress import Progress
    from lora_export.core.quantization_record import StoredForm
    from lora_export.core.targets import Target
    from lora_export.core.tensors import Tensor
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import GraphTemplate

__all__ = [
    "choice_of",
    "opset_for",
    "quantized",
    "reads_blocks",
    "record_of",
    "require_blocks",
    "require_scales",
    "tell_kept",
    "tell_without_blocks",
    "with_int8_blocks",
    "with_stored_blocks",
]

_SHOWN = 3
_WITHOUT_BLOCKS = "store int8 with one scale per output: --quantize int8."


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


def reads_blocks(opset: int | None, target: Target) -> bool:
    """Whether a graph can have blocks: by the opset that the user asks for, else by its target.

    Versions of TensorRT before 10.15 document opset 20, which has none.
    """
    return not target.tensorrt if opset is None else opset >= BLOCKS_OPSET


def with_int8_blocks(spec: QuantizeSpec) -> QuantizeSpec:
    """Return a section whose int8 weights are in blocks, where it leaves that open."""
    is_open = spec.weights == "int8" and spec.block_size is None
    if not is_open or spec.head == "int4":  # whose blocks are smaller
        return spec
    return spec.model_copy(update={"block_size": INT8_BLOCK})


def with_stored_blocks(spec: QuantizeSpec, stored: StoredForm | None) -> QuantizeSpec:
    """Return a section whose int4 blocks are those of the base, where it leaves that open.

    Args:
        spec: The section.
        stored: The form in which the base is stored; None where it is not quantized.
    """
    if stored is None or spec.block_size is not None or stored.schemes != [spec.weights]:
        return spec
    sizes = [size for size in BLOCK_SIZES if [size] == stored.group_sizes]
    return spec.model_copy(update={"block_size": sizes[0]}) if sizes else spec


def opset_for(spec: QuantizeSpec | None, opset: int) -> int:
    """Return the opset of a graph that is quantized so, `opset` or the first that has blocks."""
    if spec is None or not choice_of(spec).needs_blocks:
        return opset
    return max(opset, BLOCKS_OPSET)


def require_blocks(spec: QuantizeSpec | None, opset: int | None, target: Target) -> None:
    """Require that the graph of a build can have the blocks of its quantized weights.

    Args:
        spec: The recipe's section ``quantize``.
        opset: The opset that the user asks for, if any.
        target: Where the graph is to run.

    Raises:
        UnsupportedError: The opset, or the oldest TensorRT of the target, has none.
    """
    if spec is None or not choice_of(spec).needs_blocks:
        return
    if opset is not None and opset < BLOCKS_OPSET:
        msg = f"{_blocks_of(spec)} needs opset {BLOCKS_OPSET}, and the opset is set to {opset}"
        raise UnsupportedError(msg, hint=f"Leave --opset out. Or {_WITHOUT_BLOCKS}")
    if opset is None and target.blocks is not None:
        later = target.software[target.tensorrt.index(target.blocks)]
        msg = (
            f"{_blocks_of(spec)} needs opset {BLOCKS_OPSET}; {target.name!r} may have "
            f"{target.software[0]}, whose TensorRT {target.tensorrt[0]} reads opset {target.opset}"
        )
        hint = f"For {later} or newer: --opset {BLOCKS_OPSET}. Or {_WITHOUT_BLOCKS}"
        raise UnsupportedError(msg, hint=hint)


def require_scales(spec: QuantizeSpec | None, target: Target) -> None:
    """Require that the library of a target reads the scales that the method of a build gives.

    Raises:
        UnsupportedError: They may be negative, and the target has TensorRT.
    """
    if spec is None or not METHODS[spec.method].negative_scales:
        return
    if "int4" in (spec.weights, spec.head) and target.tensorrt:
        msg = (
            f"method {spec.method!r} gives negative scales, which TensorRT refuses; "
            f"{target.name!r} has it"
        )
        raise UnsupportedError(msg, hint=f"Use quantize: {{method: {DEFAULT_METHOD}}} for it.")


def _blocks_of(spec: QuantizeSpec) -> str:
    """Return the part of a choice that is stored in blocks."""
    if spec.weights == "int4":
        return "int4"
    return f"int8 in blocks of {spec.block_size}" if spec.block_size else "a head of int4"


def record_of(spec: QuantizeSpec | None) -> QuantizationRecord | None:
    """Return what the manifest says of a recipe's section ``quantize``."""
    return None if spec is None else QuantizationRecord(**_settings(spec))


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


def choice_of(spec: QuantizeSpec) -> QuantizeChoice:
    """Return what a section ``quantize`` asks for, as the graph is told it.

    Raises:
        UsageError: It asks for int4 without blocks.
    """
    if spec.block_size == ALL_INPUTS and "int4" in (spec.weights, spec.head):
        msg = f"int4 weights share scales in blocks; a block size of {ALL_INPUTS!r} is for int8"
        raise UsageError(msg, hint="Choose a block size from 16 to 256, or int8.")
    return QuantizeChoice(**{**_settings(spec), "keep": tuple(spec.keep)})


def _settings(spec: QuantizeSpec) -> dict[str, Any]:
    """Return a section as values; a block size of all inputs is none."""
    settings = spec.model_dump()
    if float4_of(spec.weights) is not None:
        settings["method"] = NEAREST
    return settings | ({"block_size": None} if spec.block_size == ALL_INPUTS else {})


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
