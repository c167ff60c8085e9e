"""A graph changed in its bytes is the graph that protobuf serializes after the same change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lora_export.graph.spec.placed_bytes import placed_in_bytes
from lora_export.graph.spec.placed_model import placed_in_model
from lora_export.graph.spec.template import Placement

PLACES = {
    "inline": Placement("weights/a.safetensors", 128, 24, (2, 3)),
    "typed": Placement("weights/ä.safetensors", 1 << 40, 300, (3,)),
    "scalar": Placement("f", 0, 4, ()),
    "outside": Placement("f", 7, 8),
    "p.scale": Placement("f", 4, 4),
}


def tensors() -> list[onnx.TensorProto]:
    """Return tensors with values of every kind, one with all that may surround a value."""
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[2, 1 << 20])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="weights/base.safetensors")
    outside.doc_string = "a remark"
    outside.metadata_props.add(key="after", value="the location")
    return [
        numpy_helper.from_array(np.ones((2, 3), np.float32), "inline"),
        helper.make_tensor("typed", TensorProto.FLOAT, [3], [1, 2, 3]),
        numpy_helper.from_array(np.float32(1), "scalar"),
        outside,
        numpy_helper.from_array(np.ones(1, np.float32), "p.scale.1"),
        numpy_helper.from_array(np.arange(5), "stays"),
    ]


def graph_of(initializers, *, width=3, infos=()) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    node = helper.make_node("Gemm", ["x", "inline", "typed"], ["y"])
    made = helper.make_graph([node], "main", [x], [y], initializers, value_info=infos)
    return helper.make_model(made).SerializeToString(deterministic=True)


@given(st.lists(st.sampled_from(sorted(PLACES))), st.permutations(tensors()), st.booleans())
def test_bytes_are_those_of_protobuf(names, initializers, with_width) -> None:
    graph = graph_of(initializers)
    places = {name: PLACES[name] for name in names} | {"absent": Placement("f", 0, 1)}
    width = 3 if with_width else None
    found = placed_in_bytes(graph, places, width)
    assert found is not None
    assert found == placed_in_model(graph, places, width)
    assert found[1] == {"absent"}


@pytest.mark.parametrize(
    ("graph", "places", "width"),
    [
        (graph_of(tensors()), {"inline": Placement("f", 0, 40, (2, 5))}, None),
        (graph_of(tensors()), {}, 5),
        (graph_of(tensors(), width="labels"), {}, 3),
        (graph_of(tensors(), infos=[helper.make_tensor_value_info("i", 1, [3])]), {}, 3),
        (helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), {}, None),
        (graph_of(tensors())[:-3], {}, None),
        (graph_of([TensorProto(name="n")]).replace(b"\x01n", b"\x01\xff"), {}, None),
        (b"\xff" * 32, {}, None),
        (b"", {}, None),
    ],
)
def test_what_has_to_be_parsed_is_left_alone(graph, places, width) -> None:
    assert placed_in_bytes(graph, places, width) is None
