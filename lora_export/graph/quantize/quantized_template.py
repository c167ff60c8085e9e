"""A graph template whose weights are quantized, as a user chose."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import onnx

from lora_export.core.errors import UnsupportedError
from lora_export.core.quantization import BLOCKS_OPSET
from lora_export.graph.quantize.quantized_graph import quantize_graph
from lora_export.graph.quantize.schemes import choose_schemes
from lora_export.graph.quantize.weight_reads import Read, reads_of
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.quantize.schemes import QuantizeChoice
    from lora_export.graph.quantize.weight_reads import WeightRead
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["QuantizedTemplate", "quantize_template", "ranks_of"]

_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True)
class QuantizedTemplate:
    """A template, and the matrices in it that stay as they are, with the reason."""

    template: GraphTemplate
    kept: Mapping[str, str]


def quantize_template(
    template: GraphTemplate,
    choice: QuantizeChoice,
    *,
    tokens: bool,
    required: Mapping[str, str] | None = None,
    with_zero_points: Callable[[Parameter], bool] | None = None,
) -> QuantizedTemplate:
    """Return a template that reads quantized weights.

    Args:
        template: The float graph, or the two of an encoder-decoder.
        choice: What is quantized, and how.
        tokens: Whether its output are logits of tokens, whose weight is the head.
        required: Parameters that have to stay as they are, with the reason.
        with_zero_points: Whether a quantized parameter has zero points, as the base stores them.

    Raises:
        UnsupportedError: The graph's opset has no blocks, or nothing in it can be quantized.
    """
    if choice.needs_blocks and template.opset < BLOCKS_OPSET:
        msg = (
            f"blocks of quantized weights need opset {BLOCKS_OPSET}, "
            f"the graph has opset {template.opset}"
        )
        raise UnsupportedError(
            msg, hint="Give a graph of that opset, or quantize to int8: --quantize int8."
        )
    models = [parse_onnx(each) for each in (template.onnx_bytes, template.encoder_bytes) if each]
    reads: defaultdict[str, list[WeightRead]] = defaultdict(list)
    ranks: list[dict[str, int]] = []
    for model in models:
        ranks.append(ranks_of(model))
        for name, found in reads_of(model.graph.node).items():
            reads[name] += [_known(each, model, ranks[-1]) for each in found]
    heads = (
        _heads(models[0], {each.name for each in template.parameters}) if tokens else frozenset()
    )
    scheming = choose_schemes(template.parameters, reads, choice, heads=heads, required=required)
    if all(each.quantized is None for each in scheming.parameters):
        name, reason = next(iter(scheming.kept.items()), ("", "it has no matrices"))
        msg = f"nothing in this model can be quantized: {name or 'the graph'}: {reason}"
        raise UnsupportedError(msg, hint="Export it without --quantize.")
    if with_zero_points is not None:
        chosen = tuple(_with_zeros(each, with_zero_points) for each in scheming.parameters)
        scheming = replace(scheming, parameters=chosen)
    for model, own in zip(models, ranks, strict=True):
        quantize_graph(model, scheming.parameters, own)
    first, *further = (model.SerializeToString(deterministic=True) for model in models)
    quantized = replace(
        template,
        onnx_bytes=first,
        encoder_bytes=further[0] if further else None,
        parameters=scheming.parameters,
    )
    return QuantizedTemplate(quantized, scheming.kept)


def _with_zeros(parameter: Parameter, asked: Callable[[Parameter], bool]) -> Parameter:
    quantized = parameter.quantized
    if quantized is None or not asked(parameter):
        return parameter
    return replace(parameter, quantized=replace(quantized, zero_points=True))


def _known(read: WeightRead, model: onnx.ModelProto, ranks: Mapping[str, int]) -> WeightRead:
    """Return a read; a Gather by indices of an unknown rank is nothing that can be quantized."""
    if read.read is not Read.ROWS or model.graph.node[read.at].input[1] in ranks:
        return read
    return replace(read, read=None)


def ranks_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the rank of every value whose rank is known."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(copy).graph
    found = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return found | {each.name: len(each.dims) for each in model.graph.initializer}


def _heads(model: onnx.ModelProto, parameters: set[str]) -> frozenset[str]:
    """Return the parameters of the products that the first output is computed from."""
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting: list[str] = [model.graph.output[0].name]
    seen: set[str] = set()
    heads: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in _PRODUCTS:
            heads |= parameters & set(node.input[1:2])
            continue
        waiting += _followed(node)
    return frozenset(heads)


def _followed(node: onnx.NodeProto) -> Sequence[str]:
    return node.input[:1] if node.op_type in {"Reshape", "Expand"} else list(node.input)
