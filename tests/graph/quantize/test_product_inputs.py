"""The inputs of products, found by the parameters that they are multiplied with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.graph.quantize.product_inputs import ProductInput, product_inputs, with_outputs
from tests.helpers.node_graphs import node


def model() -> onnx.ModelProto:
    """Return ``(x W).T`` and further products: of a quantized weight, transposed, of no weight."""
    weights = [
        numpy_helper.from_array(np.ones((4, 6), np.float32), "w"),
        numpy_helper.from_array(np.ones((8, 6), np.float32), "turned"),
        numpy_helper.from_array(np.ones((4, 6), np.int8), "p.quantized"),
        numpy_helper.from_array(np.ones(6, np.float32), "p.scale"),
    ]
    nodes = [
        node("MatMul", ["x", "w"], outputs=["a"]),
        node("Relu", ["x"], outputs=["b"]),
        node("DequantizeLinear", ["p.quantized", "p.scale"], outputs=["p"], axis=1),
        node("MatMul", ["b", "p"], outputs=["c"]),
        node("MatMul", ["x", "p"], outputs=["again"]),
        node("Gemm", ["a", "turned"], outputs=["d"], transB=1),
        node("Add", ["d", "d"], outputs=["y"]),
    ]
    value = helper.make_tensor_value_info
    for at, each in enumerate(nodes):
        each.name = f"node{at}"
    inputs = [value("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [value("y", TensorProto.FLOAT, ["n", 8])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )


def test_each_parameter_has_the_input_of_its_first_product() -> None:
    found = product_inputs(model().graph, ["w", "p", "turned", "absent", "x"])
    assert found == {
        "w": ProductInput("x", 4),
        "p": ProductInput("b", 4),
        "turned": ProductInput("a", 6),
    }
    assert product_inputs(model().graph, ["p"]) == {"p": ProductInput("b", 4)}


def test_a_graph_returns_the_values_that_are_asked_for() -> None:
    runtime = pytest.importorskip("onnxruntime")
    before = model()
    data = with_outputs(before, ["b", "a"], TensorProto.FLOAT)
    assert [each.name for each in before.graph.output] == ["y"]
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.array([[1, -2, 3, -4]], np.float32)
    positive, product = session.run(None, {"x": x})
    assert positive.tolist() == [[1, 0, 3, 0]]
    assert product.tolist() == [[-2] * 6]
