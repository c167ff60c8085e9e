from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.tensors import read_all
from lora_export.graph.foreign.open_graph import open_graph
from tests.helpers.foreign import initializer, save_graph

W = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
B = np.random.default_rng(1).standard_normal(30).astype(np.float32)
SIZES = {W.size, B.size}


def linear(*extra):
    return [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
        *extra,
    ]


@pytest.mark.parametrize("external", [False, True])
def test_tensors_are_read_by_position(tmp_path, external) -> None:
    weights = [initializer("w", W), initializer("b", B)]
    path = save_graph(tmp_path / "m.onnx", linear(), weights, width=20, external=external)
    graph = open_graph(path, SIZES)
    assert graph.opset == 18
    assert {name: read_all(each).tolist() for name, each in graph.tensors.items()} == {
        "w": W.tolist(),
        "b": B.tolist(),
    }
    assert not graph.model.graph.initializer[0].raw_data
    assert graph.model.graph.initializer[1].raw_data == B.tobytes()


def test_constants_become_initializers(tmp_path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=initializer("", W)),
        helper.make_node("Constant", [], ["b"], value=initializer("", B)),
        helper.make_node("Constant", [], ["half"], value=initializer("", np.float32([0.5]))),
        *linear()[:1],
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("Mul", ["s", "half"], ["y"]),
    ]
    graph = open_graph(save_graph(tmp_path / "m.onnx", nodes, [], width=20), SIZES)
    assert set(graph.tensors) == {"w", "b"}
    assert [node.op_type for node in graph.model.graph.node] == ["Constant", "MatMul", "Add", "Mul"]


def branch(name: str, values: np.ndarray) -> onnx.GraphProto:
    """A branch that multiplies with a weight of its own, called ``w`` in both."""
    y = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    node = helper.make_node("MatMul", ["x", "w"], [f"{name}_y"])
    return helper.make_graph([node], name, [], [y], [initializer("w", values)])


def test_weights_of_subgraphs_are_lifted_without_clashes(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    node = helper.make_node(
        "If", ["flag"], ["y"], then_branch=branch("then", W), else_branch=branch("else", -2 * W)
    )
    path = save_graph(tmp_path / "m.onnx", [node], [], width=20, inputs=[flag])
    graph = open_graph(path, SIZES)
    assert len(graph.tensors) == 2
    for tensor in graph.model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(read_all(graph.tensors[tensor.name]), tensor.name))
    before, after = (
        onnxruntime.InferenceSession(model)
        for model in (path.read_bytes(), graph.model.SerializeToString())
    )
    x = np.random.default_rng(2).standard_normal((3, 20)).astype(np.float32)
    for value in (True, False):
        feeds = {"x": x, "flag": np.array(value)}
        np.testing.assert_array_equal(before.run(None, feeds)[0], after.run(None, feeds)[0])


def test_identity_of_an_initializer_becomes_one_of_its_own(tmp_path) -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["other.bias"]),
        *linear()[:1],
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("Add", ["s", "other.bias"], ["y"]),
    ]
    weights = [initializer("w", W), initializer("b", B)]
    graph = open_graph(save_graph(tmp_path / "m.onnx", nodes, weights, width=20), SIZES)
    np.testing.assert_array_equal(read_all(graph.tensors["other.bias"]), B)
    assert "Identity" not in {node.op_type for node in graph.model.graph.node}


def external(path, **entries):
    """Save a graph whose weight is said to lie where `entries` say."""
    tensor = TensorProto(name="w", data_type=1, dims=W.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(linear(), "main", [], [], [tensor, initializer("b", B)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin"])
def test_data_outside_the_folder_are_refused(tmp_path, location) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    path = external(folder / "m.onnx", location=location)
    with pytest.raises(InputError, match=r"outside the graph's folder") as refusal:
        open_graph(path, SIZES)
    assert location in refusal.value.message


def test_link_that_leaves_the_folder_is_refused(tmp_path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    (folder / "data").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError, match=r"outside the graph's folder"):
        open_graph(external(folder / "m.onnx", location="data"), SIZES)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"location": "none.bin"}, "missing"),
        ({"location": ""}, "no location"),
        ({"location": "data", "offset": 8}, "which has"),
        ({"location": "data", "offset": -8}, "which has"),
        ({"location": "data", "length": 12}, "does not take the 12 bytes"),
        ({"location": "data", "offset": "x"}, "invalid literal"),
    ],
)
def test_external_data_that_contradict_the_tensor(tmp_path, entries, problem) -> None:
    (tmp_path / "data").write_bytes(W.tobytes())
    with pytest.raises(InputError, match=problem):
        open_graph(external(tmp_path / "m.onnx", **entries), SIZES)


def test_weight_in_a_function_is_refused(tmp_path) -> None:
    body = [
        helper.make_node("Constant", [], ["w"], value=initializer("", W)),
        helper.make_node("MatMul", ["a", "w"], ["c"]),
    ]
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function("own", "Layer", ["a"], ["c"], body, opsets)
    node = helper.make_node("Layer", ["x"], ["y"], domain="own")
    graph = helper.make_graph([node], "main", [], [])
    model = helper.make_model(
        graph, opset_imports=[*opsets, helper.make_opsetid("own", 1)], functions=[function]
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="function 'Layer'"):
        open_graph(path, SIZES)


def test_old_ir_version_is_refused(tmp_path) -> None:
    path = save_graph(tmp_path / "m.onnx", linear(), [initializer("w", W)], width=20)
    model = onnx.load(path)
    model.ir_version = 3
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match="IR version 3"):
        open_graph(path, SIZES)
