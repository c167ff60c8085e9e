"""A traced decoder in ONNX Runtime's form: attentions, norms and masks as its own operators.

The graph is traced with the operators of opset 23, where attention, rotation and norm are a node
each. Here they become those of ONNX Runtime (`lora_export.graph.ort_form.attention`,
`lora_export.graph.ort_form.norms`); what is left is the same in opset 21, which the graph then has.
Parameters keep their names, layouts and readers, so that weights, adapters and quantization are
those of any other graph. Inputs and outputs are those of the portable form, but for
``position_ids`` where all rotation is inside: the operator counts the tokens of a row itself, and
nobody can give it other positions.

A run may be given keys and values of a past in buffers that are longer than it; see
`lora_export.graph.ort_form.prompt_order` for padding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.core.errors import UnsupportedError
from lora_export.core.graph_forms import FORM_PROPERTY, ORT_FORM
from lora_export.graph.forms.node_slices import keep_outputs
from lora_export.graph.ort_form.attention import CONTRIB, fuse_attentions
from lora_export.graph.ort_form.capped_attention import name_capped_attentions
from lora_export.graph.ort_form.indexed_graph import IndexedGraph, replace_nodes
from lora_export.graph.ort_form.norms import SIMPLIFIED_NORM, fuse_norms
from lora_export.graph.ort_form.prompt_order import ORDERED, order_nodes, restore_nodes
from lora_export.graph.ort_form.rotary_tables import POSITIONS
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.ort_form.indexed_graph import Axes
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["ORT_DTYPES", "ORT_OPSET", "TRACED_OPSET", "Applied", "ort_template"]

TRACED_OPSET: Final = 23
"""The opset that a graph is traced with before it gets this form."""
ORT_OPSET: Final = 21
"""The opset that it has then."""
ORT_DTYPES: Final = ("float32", "float16")
"""The dtypes that the operators have on the CPU."""
_LATER: Final = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding"})
"""Operators that `ORT_OPSET` does not have."""
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_PASSING: Final = frozenset({"Reshape", "Slice", "Cast"})
"""Operators that may stand between the states of all positions and the product of the head."""
_ORDERED_INPUTS: Final = ("input_ids", POSITIONS)
_MASK: Final = "attention_mask"
_HINT: Final = "Leave --graph-form ort out: the portable form takes every decoder."


@dataclass(frozen=True)
class Applied:
    """The parts of a graph that became operators of ONNX Runtime.

    Attributes:
        attentions: ``GroupQueryAttention``: all attentions.
        rotated: How many of them rotate queries and keys.
        packed: How many read q, k and v of one product.
        windows: The windows that some have.
        skip_norms: Norms with the sum before them.
        norms: RMS norms alone.
    """

    attentions: int
    rotated: int
    packed: int
    windows: tuple[int, ...]
    skip_norms: int
    norms: int


def ort_template(template: GraphTemplate, positions: int | None) -> tuple[GraphTemplate, Applied]:
    """Return a decoder's graph in ONNX Runtime's form, and what of it has its operators.

    Args:
        template: A graph of opset `TRACED_OPSET` with a cache that grows.
        positions: How many positions a text has at most; rotations are inside the operator only
            where that is known.

    Raises:
        UnsupportedError: Something in the graph has no such form.
    """
    model = parse_onnx(template.onnx_bytes)
    name_capped_attentions(model)
    keep_outputs(model.graph, [each.name for each in model.graph.output])
    index = IndexedGraph(model)
    ordered = [name for name in _ORDERED_INPUTS if name in index.inputs]
    states = _head_states(index)
    fused = fuse_attentions(model, index, positions)
    order, constants = order_nodes(ordered)
    restored = f"{states}.restored"
    back, further = restore_nodes(states, restored)
    _rename_reads(model.graph, {states: restored}, {name: f"{name}{ORDERED}" for name in ordered})
    at = index.place(states)
    replaced = dict(fused.replaced)
    replaced[at] = [*replaced.get(at, [model.graph.node[at]]), *back]
    replace_nodes(model.graph, replaced, first=[*order, *fused.first])
    model.graph.initializer.extend([*constants, *fused.constants, *further])
    keep_outputs(model.graph, [each.name for each in model.graph.output])
    _drop_positions(model.graph)
    _require_only_attentions(model.graph)
    norms = fuse_norms(model, index.shapes)
    _declare_shapes(model.graph, index.shapes)
    _declare_form(model)
    applied = Applied(
        fused.layers, fused.rotated, fused.packed, tuple(sorted(fused.windows)),
        norms.skipped, norms.simplified,
    )  # fmt: skip
    written = model.SerializeToString(deterministic=True)
    return replace(template, onnx_bytes=written, opset=model.opset_import[0].version), applied


def _head_states(index: IndexedGraph) -> str:
    """Return the states ``[batch, new, width]`` that the head's product reads.

    Raises:
        UnsupportedError: The output does not follow from one product.
    """
    name, head = index.outputs[0], False
    while (node := index.producer(name)) is not None:
        if head and node.op_type not in _PASSING:
            return str(name)
        head = head or node.op_type in _PRODUCTS
        name = next((each for each in node.input if not index.is_initializer(each)), "")
    msg = "the logits of this model do not follow from a product with the weights of a head"
    raise UnsupportedError(msg, hint=_HINT)


def _rename_reads(graph: onnx.GraphProto, states: dict[str, str], ordered: dict[str, str]) -> None:
    """Let every node read values in their order; mutates `graph`."""
    names = {**states, **ordered}
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in names:
                node.input[at] = names[name]


def _drop_positions(graph: onnx.GraphProto) -> None:
    """Remove ``position_ids`` from the inputs if no node reads them; mutates `graph`."""
    if any(POSITIONS in node.input for node in graph.node):
        return
    kept = [each for each in graph.input if each.name != POSITIONS]
    del graph.input[:]
    graph.input.extend(kept)


def _require_only_attentions(graph: onnx.GraphProto) -> None:
    """Require that the mask and the past are read by attentions and their order alone.

    Raises:
        UnsupportedError: Another node reads them, and would see the order or the buffers.
    """
    for node in graph.node:
        ours = node.op_type == "GroupQueryAttention" or node.name.startswith("order.")
        for name in node.input:
            if not ours and (name == _MASK or name.startswith(PAST)):
                msg = f"{node.op_type} ({node.name!r}) reads {name!r} besides the attentions"
                raise UnsupportedError(msg, hint=_HINT)


def _declare_shapes(graph: onnx.GraphProto, shapes: Mapping[str, Axes]) -> None:
    """State the shapes behind operators that ONNX does not know; mutates `graph`."""
    dtype = next(e.type.tensor_type.elem_type for e in graph.input if e.name.startswith(PAST))
    outputs = {each.name for each in graph.output}
    for node in graph.node:
        if node.domain or node.op_type == SIMPLIFIED_NORM:
            for name in node.output:
                if name in shapes and name not in outputs:
                    value = helper.make_tensor_value_info(name, dtype, shapes[name])
                    graph.value_info.append(value)


def _declare_form(model: onnx.ModelProto) -> None:
    """Declare the form, its domain, and the lower opset where nothing needs the higher; mutates."""
    kinds = {node.op_type for node in model.graph.node if not node.domain}
    version = TRACED_OPSET if kinds & _LATER else ORT_OPSET
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", version), helper.make_opsetid(CONTRIB, 1)])
    helper.set_model_props(model, {FORM_PROPERTY: ORT_FORM})
