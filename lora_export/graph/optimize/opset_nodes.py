"""Operators of newer opsets: a norm, a rotary embedding, an attention become one node each.

    1. ``x / √(mean(x²) + ε) · w``                    →  ``RMSNormalization(x, w)``
    2. ``x · cos + Concat(-x₂, x₁) · sin``            →  ``RotaryEmbedding(x, cos, sin)``
    3. ``Softmax(q kᵀ · scale + mask) v``             →  ``Attention(q, k, v, mask)``

Each computes the same in another order, so that results differ by rounding alone. Case 3 is in
`lora_export.graph.optimize.attention_node`. What only resembles one of these stays as it is, and so
does what the opset of the graph does not have (`SINCE`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from lora_export.graph.nodes.node_match import (
    constant,
    only_reader,
    other_input,
    producer_of_type,
    replace_output,
    rotation_of,
    scalar,
    shape_of,
    slice_of,
    vector,
)
from lora_export.graph.optimize.attention_node import fuse_attention

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SINCE", "fuse"]

SINCE: Final[dict[str, int]] = {
    "RMSNormalization": 23,
    "RotaryEmbedding": 23,
    "Attention": 23,
}
"""The first opset with an operator."""

_HALVES: Final = 2
_STEPS_OF_A_TABLE: Final = ("Cast", "Cos", "Sin", "Mul", "Unsqueeze")
"""What may lie between the angles, once for each half, and the table."""


def fuse(model: ir.Model) -> None:
    """Apply the rewrites that the opset of `model` allows, in place; leftovers stay in it.

    Case 2 wants its tables for every row of the batch, and case 3 its mask for every query, because
    ONNX Runtime does not broadcast them: they are expanded once for all layers.
    """
    opset = model.opset_imports[""]
    tables: dict[tuple[Any, ...], ir.Value] = {}
    masks: dict[tuple[Any, ...], ir.Value] = {}
    steps: tuple[tuple[str, str, Callable[[ir.Node], object]], ...] = (
        ("RMSNormalization", "Mul", lambda node: _norm(model.graph, node)),
        ("RotaryEmbedding", "Add", lambda node: _rotation(model.graph, node, tables)),
        (
            "Attention",
            "Softmax",
            lambda node: fuse_attention(model.graph, node, masks),
        ),
    )
    for operator, last, step in steps:
        if opset < SINCE[operator]:
            continue
        for node in list(model.graph):
            if node.graph is not None and node.op_type == last and not node.domain:
                step(node)


def _norm(graph: ir.Graph, node: ir.Node) -> None:
    """Case 1; `node` is the product with w, before which the quotient may be cast to w's dtype."""
    for normed, weight in (node.inputs, node.inputs[::-1]):
        cast = producer_of_type(normed, "Cast")
        found = _quotient(cast.inputs[0] if cast is not None else normed)
        if found is None or weight is None:
            continue
        x, epsilon = found
        if cast is not None:
            back = producer_of_type(x, "Cast")
            source = back.inputs[0] if back is not None else None
            if source is None or x.dtype != ir.DataType.FLOAT:
                continue
            x = source
        axes = shape_of(x)
        if axes is None or shape_of(weight) != (axes[-1],) or x.dtype != weight.dtype:
            continue
        attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        replace_output(graph, node, [ir.node("RMSNormalization", [x, weight], attributes)])
        return


def _quotient(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """Return x and ε where `value` is ``x · Reciprocal(Sqrt(ReduceMean(x²) + ε))``."""
    product = producer_of_type(value, "Mul")
    if product is None:
        return None
    for x, inverse in (product.inputs, product.inputs[::-1]):
        reciprocal = producer_of_type(inverse, "Reciprocal")
        root = producer_of_type(reciprocal.inputs[0], "Sqrt") if reciprocal is not None else None
        added = producer_of_type(root.inputs[0], "Add") if root is not None else None
        if x is None or added is None:
            continue
        for mean, epsilon in (added.inputs, added.inputs[::-1]):
            number = scalar(epsilon)
            if number is not None and _is_mean_square(mean, x):
                return x, number
    return None


def _is_mean_square(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value` is the mean of ``x²`` over the last axis, which is kept."""
    mean = producer_of_type(value, "ReduceMean")
    axes = shape_of(x)
    if mean is None or axes is None or mean.attributes.get_int("keepdims", 1) != 1:
        return False
    if vector(mean.inputs[1]) not in {(-1,), (len(axes) - 1,)}:
        return False
    power, product = (
        producer_of_type(mean.inputs[0], "Pow"),
        producer_of_type(mean.inputs[0], "Mul"),
    )
    if power is not None:
        return power.inputs[0] is x and scalar(power.inputs[1]) == 2.0  # noqa: PLR2004  (a square)
    return product is not None and all(each is x for each in product.inputs)


def _rotation(graph: ir.Graph, node: ir.Node, tables: dict[tuple[Any, ...], ir.Value]) -> None:
    """Case 2; `node` is the sum. Values that are rotated in part become one node with it."""
    for one, other in (node.inputs, node.inputs[::-1]):
        straight, turned = producer_of_type(one, "Mul"), producer_of_type(other, "Mul")
        if straight is None or turned is None:
            continue
        for swapped, sin in (turned.inputs, turned.inputs[::-1]):
            concat = producer_of_type(swapped, "Concat")
            x = rotation_of(concat) if concat is not None else None
            if x is None or x not in straight.inputs:
                continue
            cos = other_input(straight, x)
            halves = [_half_table(graph, node, table, x, tables) for table in (cos, sin)]
            if None in halves:
                continue
            attributes: dict[str, Any] = {}
            whole = _rotated_in_part(node, x)
            if whole is not None:
                x, node = whole
                width = shape_of(halves[0])
                assert width is not None  # noqa: S101  (_half_table has given it axes)
                attributes["rotary_embedding_dim"] = _HALVES * width[-1]
            replace_output(graph, node, [ir.node("RotaryEmbedding", [x, *halves], attributes)])
            return


def _rotated_in_part(total: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Node] | None:
    """Return all of the values, and the Concat that puts what is not rotated behind the rest."""
    first, concat = producer_of_type(x, "Slice"), only_reader(total.outputs[0], "Concat")
    if first is None or concat is None or len(concat.inputs) != _HALVES:
        return None
    whole, rest = first.inputs[0], producer_of_type(concat.inputs[1], "Slice")
    axes, rotated = shape_of(whole), shape_of(x)
    if whole is None or rest is None or rest.inputs[0] is not whole or not axes or not rotated:
        return None
    if concat.attributes.get_int("axis", 0) not in {-1, len(axes) - 1}:
        return None
    spans = [slice_of(each, len(axes), axes[-1]) for each in (first, rest)]
    if spans != [(0, rotated[-1]), (rotated[-1], axes[-1])]:
        return None
    return whole, concat


def _half_table(
    graph: ir.Graph,
    before: ir.Node,
    table: ir.Value | None,
    x: ir.Value,
    tables: dict[tuple[Any, ...], ir.Value],
) -> ir.Value | None:
    """Return the half of a table ``[batch, 1, length, width]`` that the operator reads, made once.

    The table holds everything twice, because its angles are ``Concat(f, f)``: the steps from there
    are repeated on f ``[batch, length, width / 2]``.
    """
    axes, rows = shape_of(table), shape_of(x)
    if table is None or axes is None or rows is None or len(axes) != 4 or axes[1] != 1:  # noqa: PLR2004
        return None
    key = (table, rows[0])
    if key in tables:
        return tables[key]
    steps: list[ir.Node] = []
    value: ir.Value | None = table
    while (angles := producer_of_type(value, "Concat")) is None:
        step = value.producer() if value is not None else None
        place = _place_of_values(step)
        if step is None or place is None:
            return None
        steps.append(step)
        value = step.inputs[place]
    (half, *others), shape = angles.inputs, shape_of(angles.outputs[0])
    is_last = shape is not None and angles.attributes.get_int("axis", 0) in {-1, len(shape) - 1}
    if half is None or others != [half] or not is_last or shape is None or len(shape) != 3:  # noqa: PLR2004
        return None
    if shape[-1] != rows[-1] or shape[-1] % _HALVES:
        return None
    steps = [step for step in reversed(steps) if step.op_type != "Unsqueeze"]
    made = _repeated(half, steps, f"{table.name}.half")
    if shape[0] != rows[0]:
        made += _for_each_row(graph, made[-1].outputs[0], x)
    graph.insert_before(before, made)
    result = made[-1].outputs[0]
    result.shape = ir.Shape((rows[0], shape[1], shape[2] // _HALVES))
    result.type = table.type
    tables[key] = result
    return result


def _place_of_values(step: ir.Node | None) -> int | None:
    """Return which input of a step from the angles to a table holds the values; None for others."""
    if step is None or step.op_type not in _STEPS_OF_A_TABLE or step.domain:
        return None
    if step.op_type == "Unsqueeze":
        return 0 if vector(step.inputs[1]) == (1,) else None
    if step.op_type == "Mul":
        return next(
            (1 - at for at, each in enumerate(step.inputs) if scalar(each) is not None), None
        )
    return 0


def _repeated(half: ir.Value, steps: list[ir.Node], stem: str) -> list[ir.Node]:
    """Return copies of `steps`, one after another, the first on `half`."""
    made: list[ir.Node] = []
    value = half
    for number, step in enumerate(steps):
        place = _place_of_values(step)
        inputs = [value if at == place else each for at, each in enumerate(step.inputs)]
        copy = ir.node(step.op_type, inputs, dict(step.attributes))
        (value,) = copy.outputs
        value.name = copy.name = f"{stem}{number or ''}"
        value.type = step.outputs[0].type
        made.append(copy)
    return made


def _for_each_row(graph: ir.Graph, value: ir.Value, x: ir.Value) -> list[ir.Node]:
    """Return nodes that repeat `value` ``[1, …]`` for each row of the batch of `x`."""
    ones = constant(graph, np.array([1, 1], np.int64), f"{value.name}.ones")
    rows = ir.node("Shape", [x], {"start": 0, "end": 1})
    shape = ir.node("Concat", [rows.outputs[0], ones], {"axis": 0})
    expand = ir.node("Expand", [value, shape.outputs[0]])
    for node, role in ((rows, "batch"), (shape, "shape"), (expand, "rows")):
        node.name = node.outputs[0].name = f"{value.name}.{role}"
    return [rows, shape, expand]
