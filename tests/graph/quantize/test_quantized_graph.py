"""Graphs rewritten to read integers: readers of their own, joined again, and what stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized, stored_name
from lora_export.graph.quantize.quantized_graph import (
    drop_unread,
    join_readers,
    quantize_graph,
    separate_readers,
)
from lora_export.graph.quantize.schemes import QuantizeChoice, choose_schemes
from lora_export.graph.quantize.weight_reads import Read, reads_of

W = Parameter("m.weight", (64, 32), "float32", "Linear", transposed=True)
TIED = Parameter("e.weight", (96, 32), "float32", "Embedding")


def model(*nodes: onnx.NodeProto, parameter: Parameter = W) -> onnx.ModelProto:
    weight = np.zeros(parameter.stored_shape, np.float32)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"]),
    ]
    outputs = [
        helper.make_tensor_value_info(each.output[0], TensorProto.FLOAT, None) for each in nodes
    ]
    graph = helper.make_graph(
        list(nodes), "g", inputs, outputs, [numpy_helper.from_array(weight, parameter.name)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def quantized(parameter: Parameter, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    made = model(*nodes, parameter=parameter)
    (found,) = choose_schemes(
        [parameter], reads_of(made.graph.node), QuantizeChoice("int4", 16)
    ).parameters
    quantize_graph(made, [found], {"ids": 2})
    return made


def test_each_reader_has_integers_and_scales_of_its_own_and_they_can_be_joined() -> None:
    two = [helper.make_node("MatMul", ["x", W.name], [f"y{at}"]) for at in (1, 2)]
    made = quantized(W, *two)
    names = [each.name for each in made.graph.initializer]
    assert names == [
        "m.weight.quantized", "m.weight.scale", "m.weight.quantized.2", "m.weight.scale.2",
    ]  # fmt: skip
    assert [stored_name(each) for each in names] == names[:2] * 2
    assert [each.op_type for each in made.graph.node].count("DequantizeLinear") == 2
    again = onnx.ModelProto()
    again.CopyFrom(made)
    join_readers(again)
    assert [list(node.input)[1] for node in again.graph.node if node.op_type == "MatMul"] == [
        W.name, W.name,
    ]  # fmt: skip
    separate_readers(again)
    assert again == made


def test_a_tied_weight_is_stored_once_and_both_its_readers_find_it() -> None:
    head = helper.make_node("Gemm", ["x", TIED.name], ["logits"], transB=1)
    made = quantized(TIED, helper.make_node("Gather", [TIED.name, "ids"], ["rows"]), head)
    shapes = {each.name: list(each.dims) for each in made.graph.initializer}
    assert shapes["e.weight.quantized"] == shapes["e.weight.quantized.2"] == [32, 96]
    assert shapes["e.weight.scale"] == shapes["e.weight.scale.2"] == [96]
    gemm = next(node for node in made.graph.node if node.op_type == "Gemm")
    assert not gemm.attribute
    assert list(gemm.input) == ["x", TIED.name]


def test_what_nobody_reads_any_more_is_dropped() -> None:
    made = quantized(W, helper.make_node("MatMul", ["x", W.name], ["y"]))
    del made.graph.node[-1]
    drop_unread(made.graph)
    assert not made.graph.node


@pytest.mark.parametrize(
    ("node", "read"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), Read.PRODUCT),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), None),
        (helper.make_node("MatMul", ["w", "w"], ["y"]), None),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), Read.TRANSPOSED),
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0), None),
        (helper.make_node("Gather", ["w", "ids"], ["y"]), Read.ROWS),
        (helper.make_node("Gather", ["w", "ids"], ["y"], axis=1), None),
        (helper.make_node("Transpose", ["w"], ["y"]), None),
    ],
)
def test_reads(node: onnx.NodeProto, read: Read | None) -> None:
    assert [each.read for each in reads_of([node])["w"]] == [read]


@pytest.mark.parametrize(
    ("width", "choice", "expected"),
    [
        (64, QuantizeChoice("int4"), Quantized(4, 32, 0)),
        (48, QuantizeChoice("int4"), Quantized(4, 16, 0)),
        (256, QuantizeChoice("int4", 128), Quantized(4, 128, 0)),
        (33, QuantizeChoice("int4"), Quantized(8, 0, 1)),
        (64, QuantizeChoice("int8"), Quantized(8, 0, 1)),
        (64, QuantizeChoice("int8", 64), Quantized(8, 64, 0)),
    ],
)
def test_the_block_is_the_largest_that_divides_the_width(
    width: int, choice: QuantizeChoice, expected: Quantized
) -> None:
    parameter = replace(W, shape=(64, width))
    reads = {W.name: reads_of([helper.make_node("MatMul", ["x", W.name], ["y"])])[W.name]}
    (found,) = choose_schemes([parameter], reads, choice).parameters
    assert found.quantized == expected


@pytest.mark.parametrize(
    ("changes", "choice", "reason"),
    [
        ({}, QuantizeChoice("int4", keep=("m",)), "it fits 'm'"),
        ({"name": "moe.gate.weight"}, QuantizeChoice("int8"), "it fits '*.gate.weight'"),
        ({"shape": (8, 8)}, QuantizeChoice("int8"), "it has 64 values"),
        ({"shape": (4, 32, 32)}, QuantizeChoice("int8"), "it has 3 axes"),
    ],
)
def test_what_stays_has_a_reason(
    changes: dict[str, object], choice: QuantizeChoice, reason: str
) -> None:
    parameter = replace(W, **changes)  # type: ignore[arg-type]
    reads = reads_of([helper.make_node("MatMul", ["x", parameter.name], ["y"])])
    found = choose_schemes([parameter], reads, choice)
    assert found.kept == {parameter.name: reason}
    assert found.parameters == (parameter,)
