"""Each size that varies is read once, from the first input that has it.

Inputs that share an axis (``batch``, ``past_sequence``) have the same size there, but tracing reads
the size from whichever it met; a graph with a cache then reads the past's length of every layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from lora_export.graph.signature import Signature

__all__ = ["read_sizes_once"]


def read_sizes_once(model: ir.Model, signature: Signature) -> None:
    """Let every ``Shape`` node that reads one axis of an input read the same input; mutates."""
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
