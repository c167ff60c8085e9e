"""Graphs with stacks: what is not a graph of an export is refused."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.adapters.batched_graph import Stacks, with_stacks


def test_a_graph_without_inputs_is_damaged() -> None:
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    model = helper.make_model(helper.make_graph([node], "constant", [], [result]))
    with pytest.raises(ExportDirectoryError, match="has no input"):
        with_stacks(model.SerializeToString(), Stacks({}, 1, []))


def test_no_bytes_are_no_graph() -> None:
    with pytest.raises(ExportDirectoryError, match="its graph has no outputs"):
        with_stacks(b"", Stacks({}, 1, []))
