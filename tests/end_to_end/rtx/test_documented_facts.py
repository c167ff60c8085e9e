"""Statements of the documentation on the real parser and builder, checked with both.

Each test is a statement with the mark of TensorRT for RTX in ``docs/tensorrt.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.targets import TARGETS
from lora_export.ondevice.trt.api import Log, import_library
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT_RTX
from lora_export.ondevice.trt.parsing import parse_graph, start_builder

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE: Final = 64
FLOATS: Final = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
QUANTIZED: Final = {
    "int8": (TensorProto.INT8, None),
    "int4": (TensorProto.INT4, 32),
    "fp8": (TensorProto.FLOAT8E4M3FN, None),
    "fp4": (TensorProto.FLOAT4E2M1, 16),
}
"""The dtype of the weights, and the length of a block of them with one scale."""


def model(
    nodes: Sequence[Any], kind: int, weights: Sequence[Any] = (), *, inputs: Sequence[Any] = ()
) -> bytes:
    """Return a graph of one input x and one output y of a dtype."""
    x, y = (helper.make_tensor_value_info(name, kind, ["n", SIDE]) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x, *inputs], [y], list(weights))
    opset = helper.make_opsetid("", 23)
    return helper.make_model(graph, opset_imports=[opset], ir_version=11).SerializeToString()


def product(precision: str) -> bytes:
    """Return ``y = x W`` with W in a precision; of fp8, x is quantized too."""
    if precision in FLOATS:
        kind = FLOATS[precision]
        weight = helper.make_tensor("w", kind, [SIDE, SIDE], np.ones(SIDE * SIDE).tolist())
        return model([helper.make_node("MatMul", ["x", "w"], ["y"])], kind, [weight])
    stored, block = QUANTIZED[precision]
    half = TensorProto.FLOAT16
    weight = helper.make_tensor("w", stored, [SIDE, SIDE], np.ones(SIDE * SIDE).tolist())
    shape = [SIDE] if block is None else [SIDE // block, SIDE]
    scale = helper.make_tensor("s", half, shape, np.ones(shape).ravel().tolist())
    axes = {"axis": 1} if block is None else {"axis": 0, "block_size": block}
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"], **axes)]
    weights, left = [weight, scale], "x"
    if precision == "fp8":
        weights += [
            helper.make_tensor("one", half, [], [1.0]),
            helper.make_tensor("zero", stored, [], [0.0]),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one"], ["r"]),
        ]
        left = "r"
    return model([*nodes, helper.make_node("MatMul", [left, "d"], ["y"])], half, weights)


def build(data: bytes, capability: str = "8.9", *, profile: bool = True) -> tuple[bool, str]:
    """Build a graph for a compute capability; return whether that worked, and the last message."""
    log = Log(import_library(TENSORRT_RTX))
    builder = start_builder(log)
    parsed = parse_graph(builder, log, data, Path("graph.onnx"))
    assert parsed.refusals == ()
    config = builder.create_builder_config()
    if profile:
        shapes = builder.create_optimization_profile()
        shapes.set_shape("x", (1, SIDE), (8, SIDE), (16, SIDE))
        config.add_optimization_profile(shapes)
    config.num_compute_capabilities = 1
    member = LIBRARIES[TENSORRT_RTX].capabilities[capability]
    config.set_compute_capability(getattr(log.module.ComputeCapability, member), 0)
    return builder.build_serialized_network(parsed.network, config) is not None, log.last_message()


@pytest.mark.parametrize(
    "target", [row.name for row in TARGETS.values() if row.rtx and row.compute_capability]
)
def test_the_builder_takes_the_precisions_of_the_table_and_no_others(target: str) -> None:
    row = TARGETS[target]
    assert row.compute_capability is not None
    capability = ".".join(map(str, row.compute_capability))
    found = {each for each in (*FLOATS, *QUANTIZED) if build(product(each), capability)[0]}
    assert found == set(row.precisions) - {"tf32"}


def test_turing_has_float16_and_int8_alone() -> None:
    found = {each for each in (*FLOATS, *QUANTIZED) if build(product(each), "7.5")[0]}
    assert found == {"fp16", "int8"}


def test_a_dynamic_axis_needs_a_profile() -> None:
    assert build(product("fp16")) == (True, "TensorRT gives no reason")
    done, said = build(product("fp16"), profile=False)
    assert not done
    assert "no optimization profile has been defined" in said


def test_an_input_with_a_default_is_dropped() -> None:
    """So that a swappable graph, as it is, would become an engine of the base."""
    value = helper.make_tensor_value_info("w", TensorProto.FLOAT, [SIDE, SIDE])
    weight = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    data = model([node], TensorProto.FLOAT, [weight], inputs=[value])
    log = Log(import_library(TENSORRT_RTX))
    network = parse_graph(start_builder(log), log, data, Path("graph.onnx")).network
    assert [network.get_input(at).name for at in range(network.num_inputs)] == ["x"]


@pytest.mark.parametrize(
    ("operator", "values"), [("CumSum", {"axis": 1}), ("Clip", {"low": 0, "high": 9})]
)
def test_integers_that_the_tables_do_not_list_are_built(
    operator: str, values: dict[str, int]
) -> None:
    weights = [numpy_helper.from_array(np.array(each), name) for name, each in values.items()]
    node = helper.make_node(operator, ["x", *values], ["y"])
    assert build(model([node], TensorProto.INT64, weights))[0]
