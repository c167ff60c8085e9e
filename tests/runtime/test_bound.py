"""A session with its inputs bound: the outputs are those of a plain run, on every run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.runtime.bound import BoundRun
from lora_export.runtime.ort import CPU, open_session


@pytest.fixture
def session(tmp_path):
    """``y = x @ w``, `w` an optional input."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 3]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", inputs, [output], [weight])
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)]),
              str(path))  # fmt: skip
    return open_session(path)


def test_it_runs_on_what_was_bound_however_often(session):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    run = BoundRun(session, CPU, {"x": x})
    other = BoundRun(session, CPU, {"x": x[:1] + 1, "w": 2 * np.eye(3, dtype=np.float32)})
    for _ in range(3):
        run()
        other()
    np.testing.assert_array_equal(run.outputs()["y"], x)
    np.testing.assert_array_equal(other.outputs()["y"], 2 * (x[:1] + 1))


def test_inputs_that_do_not_fit_are_our_error(session):
    with pytest.raises(ExportDirectoryError, match="failed in ONNX Runtime"):
        BoundRun(session, CPU, {"x": np.zeros((2, 4), np.float32)})()
