"""Helpers that find and change nodes of a graph; every rewrite uses them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "constant",
    "equals_number",
    "insert_after",
    "only_reader",
    "other_input",
    "producer_of_type",
    "replace_output",
    "rotation_of",
    "same_axis",
    "scalar",
    "shape_of",
    "slice_of",
    "strip_constant",
    "vector",
]

_ROUNDING: Final = 1e-3
"""How far a constant in float16 may be from the number that it stands for, relatively."""


def producer_of_type(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that makes `value` if it is an `op_type` of the standard domain."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def scalar(value: ir.Value | None) -> float | None:
    """Return the number that `value` always is, or None."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().astype(np.float64).reshape(()))


def vector(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers that `value` always is (axes, a shape), or None."""
    if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.INT64:
        return None
    return tuple(int(item) for item in value.const_value.numpy().reshape(-1))


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the operand beside `value` of a node with two."""
    first, second = node.inputs
    return second if first is value else first


def shape_of(value: ir.Value | None) -> tuple[Any, ...] | None:
    """Return the axes of `value` (an integer, a symbol's name, None), or None without a shape."""
    if value is None or value.shape is None:
        return None
    return tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)


def same_axis(one: int | str | None, other: int | str | None) -> bool:
    """Whether two axes always have the same length; an axis without a name never does."""
    return one is not None and one == other


def constant(graph: ir.Graph, array: np.ndarray[Any, Any], stem: str) -> ir.Value:
    """Return a new initializer of `array`, named after `stem`; mutates `graph`."""
    name, number = stem, 0
    while name in graph.initializers:
        number += 1
        name = f"{stem}_{number}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.initializers.add(value)
    return value


def insert_after(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert `nodes`, which read `value`, right behind what makes it; mutates `graph`."""
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, list(nodes))
    else:
        graph.insert_before(graph[0], list(nodes))


def replace_output(graph: ir.Graph, old: ir.Node, added: Sequence[ir.Node]) -> None:
    """Replace the output of `old` by that of the last of `added`, same name; mutates `graph`."""
    (before,), (after,) = old.outputs, added[-1].outputs
    name = before.name or "value"
    for node in added[:-1]:
        for number, value in enumerate(node.outputs):
            value.name = f"{name}.{node.op_type.lower()}{number or ''}"
        node.name = node.outputs[0].name
    after.shape, after.type = before.shape, before.type
    graph.insert_before(old, list(added))
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    added[-1].name = old.name
    graph.remove(old, safe=True)
    after.name = name


def rotation_of(concat: ir.Node) -> ir.Value | None:
    """Return x where `concat` is ``Concat(-x₂, x₁)`` on the last axis, x₁ and x₂ its halves."""
    axes = shape_of(concat.outputs[0])
    if axes is None or len(concat.inputs) != 2 or not isinstance(axes[-1], int) or axes[-1] % 2:  # noqa: PLR2004
        return None
    if concat.attributes.get_int("axis", 0) not in {-1, len(axes) - 1}:
        return None
    negative = producer_of_type(concat.inputs[0], "Neg")
    second = producer_of_type(negative.inputs[0], "Slice") if negative is not None else None
    first = producer_of_type(concat.inputs[1], "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    half = axes[-1] // 2
    if slice_of(first, len(axes), 2 * half) != (0, half):
        return None
    if slice_of(second, len(axes), 2 * half) != (half, 2 * half):
        return None
    x = first.inputs[0]
    return x if (shape_of(x) or (None,))[-1] == axes[-1] else None


def slice_of(node: ir.Node, rank: int, width: int) -> tuple[int, int] | None:
    """Return where a Slice of the last axis starts and ends, or None for any other."""
    start, end, axis = (vector(value) for value in node.inputs[1:4])
    step = vector(node.inputs[4]) if len(node.inputs) > 4 else (1,)  # noqa: PLR2004
    if start is None or end is None or axis not in {(-1,), (rank - 1,)} or step != (1,):
        return None
    if len(start) != 1 or start[0] < 0 or end[0] < 0:
        return None
    return start[0], min(end[0], width)


def strip_constant(value: ir.Value | None, op_type: str, number: float) -> ir.Value | None:
    """Return the other operand where `value` is made by `op_type` of it and of `number`."""
    node = producer_of_type(value, op_type)
    if node is None:
        return None
    for one, other in (node.inputs, node.inputs[::-1]):
        if equals_number(other, number):
            return one
    return None


def equals_number(value: ir.Value | None, number: float) -> bool:
    """Whether `value` is always `number`, as the dtype can hold it."""
    found = scalar(value)
    return found is not None and math.isclose(found, number, rel_tol=_ROUNDING)


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the one node that reads `value`, if it is an `op_type`."""
    uses: list[Any] = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        return None
    node: ir.Node = uses[0].node
    return node
