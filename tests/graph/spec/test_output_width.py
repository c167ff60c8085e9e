"""A head of another width: what lies between it and the output, on graphs written by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import UnsupportedError
from lora_export.graph.spec.output_width import set_output_width

BEFORE, AFTER, INNER = 5, 7, 3


def head(*nodes, constants=(), last="rows"):
    """Return a graph: rows of `x` times the head, then `nodes`; the head is `AFTER` wide."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INNER])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, BEFORE])
    weight = np.arange(AFTER * INNER, dtype=np.float32).reshape(AFTER, INNER)
    made = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], [last], transB=1), *nodes],
        "main", [x], [y], [numpy_helper.from_array(weight, "w"), *constants],
        value_info=[helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", BEFORE])],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def int64(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


def with_initializer():
    return head(
        helper.make_node("Reshape", ["rows", "shape"], ["y"]),
        constants=[int64("shape", -1, 1, BEFORE)],
    )


def with_concat():
    return head(
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "one", "features"], ["shape"], axis=0),
        helper.make_node("Reshape", ["rows", "shape"], ["y"]),
        constants=[int64("one", 1), int64("features", BEFORE)],
    )


def with_constant_node():
    return head(
        helper.make_node("Constant", [], ["shape"], value=int64("", -1, 1, BEFORE)),
        helper.make_node("Reshape", ["rows", "shape"], ["shaped"]),
        helper.make_node("Tanh", ["shaped"], ["y"]),
    )


@pytest.mark.parametrize("make", [with_initializer, with_concat, with_constant_node])
def test_shapes_behind_the_head_get_its_width(make) -> None:
    model, x = make(), np.ones((4, INNER), np.float32)
    set_output_width(model, BEFORE, AFTER, {"w"})
    found = run(model, x)
    assert found.shape == (4, 1, AFTER)
    axes = model.graph.output[0].type.tensor_type.shape.dim
    assert axes[-1].dim_value == AFTER
    onnx.checker.check_model(model, full_check=True)


def test_a_size_of_the_same_number_before_the_head_stays() -> None:
    model = head(
        helper.make_node("Reshape", ["rows", "out"], ["y"]),
        constants=[int64("out", -1, 1, BEFORE), int64("in", -1, BEFORE)],
    )
    model.graph.node.insert(0, helper.make_node("Reshape", ["z", "in"], ["unused"]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [BEFORE]))
    set_output_width(model, BEFORE, AFTER, {"w"})
    kept = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert kept["in"].tolist() == [-1, BEFORE]
    assert kept["out"].tolist() == [-1, 1, AFTER]


def test_a_constant_of_the_old_width_is_refused() -> None:
    mask = numpy_helper.from_array(np.zeros(BEFORE, np.float32), "mask")
    model = head(helper.make_node("Add", ["rows", "mask"], ["y"]), constants=[mask])
    with pytest.raises(UnsupportedError, match="mask"):
        set_output_width(model, BEFORE, AFTER, {"w"})
