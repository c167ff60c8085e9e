"""Products with four-bit floats: one node in a file, a value while a graph is changed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized
from lora_export.graph.quantize.quantized_graph import join_readers, quantize_graph
from lora_export.weights.quantization.float4_rounding import pack_codes, quantize_float4
from tests.helpers.float4_bases import table_of

NAME = "m.weight"
INPUTS, OUTPUTS = 128, 40


def float_graph(nodes):
    """Return a graph that reads the weight ``[in, out]`` and a bias."""
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUTPUTS])],
        [TensorProto(name=NAME, data_type=1, dims=[INPUTS, OUTPUTS]),
         helper.make_tensor("b", TensorProto.FLOAT, [OUTPUTS], np.ones(OUTPUTS))],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return model


def filled(model, kind, rows):
    codes, scales = quantize_float4(rows, kind, block_size=64, scale_dtype=np.float32)
    values = {f"{NAME}.quantized": pack_codes(codes), f"{NAME}.scale": scales}
    kept = [each for each in model.graph.initializer if each.name not in values]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in values.items())
    exact = table_of(kind)[codes] * np.repeat(scales, 64, 1)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session, exact


CASES = {
    "MatMul": ([helper.make_node("MatMul", ["x", NAME], ["y"], name="n")], 0),
    "Gemm": ([helper.make_node("Gemm", ["x", NAME, "b"], ["y"], name="n")], 1),
    "twice": (
        [helper.make_node("MatMul", ["x", NAME], ["p"], name="p"),
         helper.make_node("MatMul", ["x", NAME], ["q"], name="q"),
         helper.make_node("Add", ["p", "q"], ["y"], name="n")],
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("case", CASES)
def test_the_product_is_the_dequantized_one(case, kind):
    nodes, bias = CASES[case]
    model = float_graph(nodes)
    quantized = Quantized(4, 64, axis=1, floats=kind)
    parameter = Parameter(NAME, (OUTPUTS, INPUTS), "float32", "Linear", quantized=quantized)
    quantize_graph(model, [parameter], {})
    written = model.SerializeToString(deterministic=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulBnb4") == (2 if case == "twice" else 1)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    session, exact = filled(model, kind, rows)
    x = rng.standard_normal((3, INPUTS)).astype(np.float32)
    times = 2 if case == "twice" else 1
    expected = times * (x.astype(np.float64) @ exact.T.astype(np.float64)) + bias
    assert np.abs(session.run(None, {"x": x})[0] - expected).max() < 1e-4

    again = onnx.ModelProto.FromString(written)
    join_readers(again)  # a value that is called as the parameter is
    assert [n.op_type for n in again.graph.node].count("Float4Value") == 1
    readers = [node for node in again.graph.node if NAME in node.input]
    assert {node.op_type for node in readers} == {"MatMul"}
    assert len(readers) == times
