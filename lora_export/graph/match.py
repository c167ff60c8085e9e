"""What rewrites of a graph need to look at it and to change it: small, and without state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "constant",
    "insert_after",
    "known",
    "made_by",
    "other_input",
    "replace_output",
    "same_axis",
    "scalar",
    "vector",
]


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
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


def known(value: ir.Value | None) -> tuple[Any, ...] | None:
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
    """Let the last of `added` make what `old` made, under the same name; mutates `graph`."""
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
