"""Sizes that are equal become one value."""

from __future__ import annotations

import onnx_ir as ir

from lora_export.graph.nodes.equal_sizes import order_sums


def size(x: ir.Value, axis: int) -> ir.Node:
    node = ir.node("Shape", [x], attributes={"start": axis, "end": axis + 1})
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return node


def test_sums_of_sizes_have_one_order_and_differences_keep_theirs() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["a", "b"]), type=ir.TensorType(ir.DataType.FLOAT))
    sizes = [size(x, 0), size(x, 1)]
    a, b = (node.outputs[0] for node in sizes)
    pairs = [("Add", a, b), ("Add", b, a), ("Mul", b, a), ("Sub", b, a)]
    nodes = [ir.node(op_type, [one, other]) for op_type, one, other in pairs]
    a_float = ir.node("Cast", [a], attributes={"to": 1})
    b_float = ir.node("Cast", [b], attributes={"to": 1})
    for node in (a_float, b_float):
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    floats = ir.node("Add", [b_float.outputs[0], a_float.outputs[0]])
    graph = ir.Graph([x], [], nodes=[*sizes, *nodes, a_float, b_float, floats],
                     opset_imports={"": 20}, name="main")  # fmt: skip
    order_sums(ir.Model(graph, ir_version=10))
    assert [tuple(node.inputs) for node in nodes] == [(a, b), (a, b), (a, b), (b, a)]
    assert tuple(floats.inputs) == (b_float.outputs[0], a_float.outputs[0])
