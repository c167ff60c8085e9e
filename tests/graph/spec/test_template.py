"""Initializers pointed at weight files: `place`, on a graph written by hand."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.spec.placement import place
from lora_export.graph.spec.template import Placement


def external(name, shape):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights/base.safetensors"), ("offset", "64"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def graph():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    made = helper.make_graph([node], "main", [x], [y], [external("w", [2, 3]), external("b", [3])])
    return helper.make_model(made).SerializeToString()


def places_of(data):
    model = onnx.load_model_from_string(data)
    return {
        i.name: (list(i.dims), {e.key: e.value for e in i.external_data})
        for i in model.graph.initializer
    }


def test_named_initializers_move_and_others_stay(graph) -> None:
    places = places_of(place(graph, {"w": Placement("weights/a.safetensors", 128, 24)}))
    assert places["w"] == (
        [2, 3],
        {"location": "weights/a.safetensors", "offset": "128", "length": "24"},
    )
    assert places["b"] == places_of(graph)["b"]


def test_head_of_another_width_changes_shape_and_output(graph) -> None:
    places = {"w": Placement("f", 0, 40, (2, 5)), "b": Placement("f", 40, 20, (5,))}
    data = place(graph, places, output_width=5)
    assert places_of(data)["w"][0] == [2, 5]
    output = onnx.load_model_from_string(data).graph.output[0]
    dims = output.type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[-1].dim_value) == ("batch", 5)


def test_same_input_gives_same_bytes(graph) -> None:
    placements = {"w": Placement("f", 0, 24), "b": Placement("f", 24, 12)}
    backwards = dict(reversed(placements.items()))
    assert place(graph, placements) == place(graph, backwards)


def test_unknown_initializer_is_refused(graph) -> None:
    with pytest.raises(ExportDirectoryError, match="'z'"):
        place(graph, {"z": Placement("f", 0, 1)})


@pytest.mark.parametrize("data", [b"\xff" * 32, b"not onnx at all"])
def test_damaged_graph_is_one_message(data) -> None:
    with pytest.raises(ExportDirectoryError, match="readable ONNX"):
        place(data, {"w": Placement("f", 0, 1)})
