"""Equal sizes computed by the same nodes, so that they are recognised as equal.

Inputs that share an axis (``batch``, ``past_sequence``) have the same size there, but tracing reads
the size from whichever it met; a graph with a cache then reads the past's length of every layer.
Nor does tracing keep to one order in a sum: ``past + new`` here is ``new + past`` there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx_ir as ir

if TYPE_CHECKING:
    from lora_export.graph.spec.signature import Signature

__all__ = ["order_sums", "read_sizes_once"]

_COMMUTATIVE: Final = frozenset({"Add", "Mul"})


def read_sizes_once(model: ir.Model, signature: Signature) -> None:
    """Make all ``Shape`` nodes for one axis read the same input; mutates."""
    inputs = dict(zip(model.graph.inputs, signature.inputs, strict=True))
    first: dict[str, tuple[ir.Value, int]] = {}
    for value, given in inputs.items():
        for position in given.dynamic:
            first.setdefault(str(given.axes[position]), (value, position))
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Shape" else None
        if source is None or source not in inputs:
            continue
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
        axis = inputs[source].axes[start]
        if end != start + 1 or not isinstance(axis, str):
            continue
        value, position = first[axis]
        node.replace_input_with(0, value)
        node.attributes["start"] = ir.AttrInt64("start", position)
        node.attributes["end"] = ir.AttrInt64("end", position + 1)


def order_sums(model: ir.Model) -> None:
    """Order the inputs of integer sums and products by when they are computed; mutates."""
    made: dict[ir.Value, int] = {}
    for number, node in enumerate(model.graph):
        made.update(dict.fromkeys(node.outputs, number))
        places = [
            made.get(value, -1) if value is not None and value.dtype == ir.DataType.INT64 else -1
            for value in node.inputs
        ]
        if node.op_type in _COMMUTATIVE and places[0] > places[1] >= 0:
            for position, value in enumerate(reversed(tuple(node.inputs))):
                node.replace_input_with(position, value)
