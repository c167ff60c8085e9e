"""Nodes that stand for one operation, replaced by one node or by a form that runtimes fuse.

Each rewrite is exact, or changes the rounding of one operation; ``f`` and ``s`` mean a fixed and a
symbolic axis, and tracing has left the axes beside every value.

    1. ``Reshape(x, Concat(...))``      →  ``Reshape(x, [0, 0, f, f])``: an axis that stays is 0
    2. ``Reshape → Gemm → Reshape``     →  ``MatMul → Add`` on all axes
    3. ``x · Reciprocal(Sqrt(v))``      →  ``x / Sqrt(v)``, which runtimes know as an RMS norm
    4. ``x · (0.5 · (1 + Erf(x/√2)))``  →  ``(x · (1 + Erf(x/√2))) · 0.5``, and ``Gelu`` from 20
    5. ``0.5x · (1 + Tanh(...))``       →  ``Gelu(approximate="tanh")`` from opset 20
    6. ``x + 0``                        →  ``x``, where nothing masks
    7. ``Concat(-x₂, x₁) · sin``        →  ``Concat(x₂, x₁) · (±sin)``, halves by one ``Split``
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from lora_export.graph.nodes.node_match import (
    constant,
    equals_number,
    insert_after,
    only_reader,
    other_input,
    producer_of_type,
    replace_output,
    rotation_of,
    same_axis,
    scalar,
    shape_of,
    strip_constant,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["rewrite"]

_GELU_OPSET: Final = 20


def rewrite(model: ir.Model) -> None:
    """Apply the rewrites above to `model`, in place; what they leave unused stays in it."""
    opset = model.opset_imports[""]
    signed: dict[ir.Value, ir.Value] = {}
    table: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
        "Reshape": _fix_reshape,
        "Mul": _divide_by_root,
        "Add": _add_nothing,
    }
    for node in list(model.graph):
        if node.op_type in table:
            table[node.op_type](model.graph, node)
    for node in list(model.graph):
        if node.graph is None:
            continue
        if node.op_type == "Gemm":
            _unflatten_gemm(model.graph, node)
        elif node.op_type == "Mul" and not _gelu(model.graph, node, opset):
            _sign_the_table(model.graph, node, signed)


def _fix_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Case 1; a Reshape to the shape that its input has disappears.

    One axis may follow from the others (-1), but not beside a copied axis that can be empty (the
    past of a cache): only the first, the batch, is taken to be never so.
    """
    x, shape = node.inputs
    before, after = shape_of(x), shape_of(node.outputs[0])
    if before is None or after is None or x is None or vector(shape) is not None:
        return
    if len(before) == len(after) and all(map(same_axis, before, after)):
        if not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], x)
            graph.remove(node, safe=True)
        return
    wanted: list[int] = []
    for position, axis in enumerate(after):
        if isinstance(axis, int):
            wanted.append(axis)
        else:
            stays = position < len(before) and same_axis(before[position], axis)
            wanted.append(0 if stays else -1)
    copied = [i for i, axis in enumerate(after) if not isinstance(axis, int) and wanted[i] == 0]
    inferred = wanted.count(-1)
    if 0 in after or inferred > 1 or (inferred and copied not in ([], [0])):
        return
    stem = f"{node.outputs[0].name}.shape"
    node.replace_input_with(1, constant(graph, np.array(wanted, np.int64), stem))
    node.attributes.pop("allowzero", None)


def _unflatten_gemm(graph: ir.Graph, gemm: ir.Node) -> None:
    """Case 2: ``y [s, s, out] = (x [s, s, in] as rows) W + b``, for a plain Gemm."""
    rows, back = (
        producer_of_type(gemm.inputs[0], "Reshape"),
        only_reader(gemm.outputs[0], "Reshape"),
    )
    swapped = any(gemm.attributes.get_int(name, 0) for name in ("transA", "transB"))
    scaled = any(gemm.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if rows is None or back is None or swapped or scaled:
        return
    x, weight = rows.inputs[0], gemm.inputs[1]
    before, after, flat = shape_of(x), shape_of(back.outputs[0]), shape_of(rows.outputs[0])
    if before is None or after is None or flat is None or len(flat) != 2:  # noqa: PLR2004  (rows)
        return
    leading = len(after) - 1
    inner = before[leading:]
    if not all(map(same_axis, before[:leading], after[:-1])) or len(before) <= leading:
        return
    if not all(isinstance(axis, int) for axis in inner) or math.prod(inner) != flat[-1]:
        return
    added: list[ir.Node] = []
    if len(inner) > 1:  # heads, that are now merged
        axes = np.array([0] * leading + [flat[-1]], np.int64)
        merged = constant(graph, axes, f"{back.outputs[0].name}.axes")
        added.append(ir.node("Reshape", [x, merged]))
        x = added[0].outputs[0]
        x.shape = ir.Shape((*after[:-1], flat[-1]))
        x.type = back.outputs[0].type
    product = ir.node("MatMul", [x, weight])
    product.outputs[0].shape, product.outputs[0].type = ir.Shape(after), back.outputs[0].type
    added.append(product)
    if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:  # noqa: PLR2004  (C, the bias)
        added.append(ir.node("Add", [product.outputs[0], gemm.inputs[2]]))
    replace_output(graph, back, added)


def _divide_by_root(graph: ir.Graph, node: ir.Node) -> None:
    """Case 3."""
    for x, inverse in (node.inputs, node.inputs[::-1]):
        reciprocal = producer_of_type(inverse, "Reciprocal")
        if reciprocal is not None and producer_of_type(reciprocal.inputs[0], "Sqrt") is not None:
            replace_output(graph, node, [ir.node("Div", [x, reciprocal.inputs[0]])])
            return


def _add_nothing(graph: ir.Graph, node: ir.Node) -> None:
    """Case 6, for a sum that has the shape of x."""
    for x, other in (node.inputs, node.inputs[::-1]):
        before, after = shape_of(x), shape_of(node.outputs[0])
        if x is None or before is None or after is None or len(before) != len(after):
            continue
        if scalar(other) == 0.0 and all(map(same_axis, before, after)):
            if not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], x)
                graph.remove(node, safe=True)
            return


def _gelu(graph: ir.Graph, node: ir.Node, opset: int) -> bool:
    """Cases 4 and 5: whether `node` was the last product of a GELU, now rewritten."""
    for x, factor in (node.inputs, node.inputs[::-1]):
        if x is None or factor is None:
            continue
        if (half := _half_of(factor)) is not None and _is_erf_sum(half, x):
            if opset >= _GELU_OPSET:
                replace_output(graph, node, [ir.node("Gelu", [x])])
            else:
                product = ir.node("Mul", [x, half])
                by = other_input(factor.producer() or node, half)
                replace_output(graph, node, [product, ir.node("Mul", [product.outputs[0], by])])
            return True
        inner = _half_of(x)
        if inner is not None and opset >= _GELU_OPSET and _is_tanh_sum(factor, inner):
            gelu = ir.node("Gelu", [inner], attributes={"approximate": "tanh"})
            replace_output(graph, node, [gelu])
            return True
    return False


def _is_erf_sum(value: ir.Value, x: ir.Value) -> bool:
    """Whether `value` is ``1 + Erf(x / √2)``."""
    erf = producer_of_type(strip_constant(value, "Add", 1.0), "Erf")
    if erf is None:
        return False
    divided = producer_of_type(erf.inputs[0], "Div")
    if divided is not None:
        return divided.inputs[0] is x and equals_number(divided.inputs[1], math.sqrt(2.0))
    return strip_constant(erf.inputs[0], "Mul", math.sqrt(0.5)) is x


def _is_tanh_sum(value: ir.Value, x: ir.Value) -> bool:
    """Whether `value` is ``1 + Tanh(√(2/π) · (x + 0.044715 x³))``."""
    tanh = producer_of_type(strip_constant(value, "Add", 1.0), "Tanh")
    inner = (
        producer_of_type(strip_constant(tanh.inputs[0], "Mul", math.sqrt(2 / math.pi)), "Add")
        if tanh
        else None
    )
    if inner is None or x not in inner.inputs:
        return False
    cube = producer_of_type(strip_constant(other_input(inner, x), "Mul", 0.044715), "Pow")
    return cube is not None and cube.inputs[0] is x and scalar(cube.inputs[1]) == 3.0  # noqa: PLR2004


def _sign_the_table(graph: ir.Graph, node: ir.Node, signed: dict[ir.Value, ir.Value]) -> None:
    """Case 7: the sign of a rotation moves from every layer's values into the one table."""
    for rotated, sin in (node.inputs, node.inputs[::-1]):
        concat = producer_of_type(rotated, "Concat")
        x = rotation_of(concat) if concat is not None else None
        table = shape_of(sin)
        if concat is None or x is None or sin is None or sin.is_initializer() or table is None:
            continue
        width = (shape_of(x) or (None,))[-1]
        if table[-1] != width or sin.dtype is None or len(concat.outputs[0].uses()) > 1:
            continue
        if sin not in signed:
            signed[sin] = _with_signs(graph, sin, width)
        halves = ir.node("Split", [x], attributes={"axis": -1, "num_outputs": 2}, num_outputs=2)
        swapped = ir.node("Concat", halves.outputs[::-1], attributes={"axis": -1})
        replace_output(
            graph, node, [halves, swapped, ir.node("Mul", [swapped.outputs[0], signed[sin]])]
        )
        return


def _with_signs(graph: ir.Graph, sin: ir.Value, width: int) -> ir.Value:
    """Return `sin` with its first half negated, made once."""
    assert sin.dtype is not None  # noqa: S101  (checked by the caller)
    signs = np.repeat(np.array([-1, 1], sin.dtype.numpy()), width // 2)
    product = ir.node("Mul", [sin, constant(graph, signs, f"{sin.name}.signs")])
    (result,) = product.outputs
    result.name = product.name = f"{sin.name}.signed"
    result.shape, result.type = sin.shape, sin.type
    insert_after(graph, sin, [product])
    return result


def _half_of(value: ir.Value) -> ir.Value | None:
    """Return v where `value` is ``0.5 · v``."""
    return strip_constant(value, "Mul", 0.5)
