"""Graphs that protobuf reads and that are none: each is refused in a sentence, at once."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lora_export.core.errors import InputError
from lora_export.graph.foreign.open_graph import open_graph
from lora_export.graph.foreign.readers import readings_of
from tests.helpers.foreign import initializer, save_graph

W = np.arange(600, dtype=np.float32).reshape(20, 30)
PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


def graph_of(tmp_path, *nodes):
    return save_graph(tmp_path / "m.onnx", [*nodes, PRODUCT], [initializer("w", W)], width=20)


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([helper.make_node("Relu", ["x"], [])], "has no output"),
        ([helper.make_node("Identity", ["x"], [""])], "has no output"),
        ([helper.make_node("Constant", [], ["", "a"])], "without a name"),
        ([helper.make_node("Relu", ["x"], ["y"])], "'y' is made twice"),
        ([helper.make_node("Relu", ["x"], ["x"])], "'x' is made twice"),
        ([helper.make_node("Identity", ["a"], ["a"])], "depend on each other: 'a'"),
        (
            [helper.make_node("Cast", ["b"], ["a"], to=1), helper.make_node("Relu", ["a"], ["b"])],
            "depend on each other",
        ),
    ],
)
def test_a_broken_structure_is_named(nodes, problem, tmp_path) -> None:
    with pytest.raises(InputError, match=problem):
        open_graph(graph_of(tmp_path, *nodes), {W.size})


def test_a_cycle_through_a_subgraph_is_found(tmp_path) -> None:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Relu", ["z"], ["o"])], "then", [], [out])
    node = helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
    with pytest.raises(InputError, match="depend on each other: 'z'"):
        open_graph(graph_of(tmp_path, node), {W.size})


@pytest.mark.parametrize("old", [b"MatMul", b"weight_w"])
def test_a_text_that_is_not_utf_8(old, tmp_path) -> None:
    path = save_graph(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "weight_w"], ["y"])],
        [initializer("weight_w", W)],
        width=20,
    )
    path.write_bytes(path.read_bytes().replace(old, b"\xff\xfe" + old[2:]))
    with pytest.raises(InputError, match="not UTF-8"):
        open_graph(path, {W.size})


def test_an_identity_of_nothing(tmp_path) -> None:
    open_graph(graph_of(tmp_path, helper.make_node("Identity", [], ["a"])), {W.size})


@pytest.mark.timeout(20)
def test_a_chain_that_doubles_is_followed_once() -> None:
    nodes = [helper.make_node("Transpose", [f"v{i}"] * 2, [f"v{i + 1}"]) for i in range(50)]
    nodes.append(helper.make_node("MatMul", ["x", "v50"], ["y"]))
    readings = readings_of(helper.make_graph(nodes, "g", [], []), ["v0"])
    assert [each.node.op_type for each in readings["v0"]] == ["MatMul"]
    long = [helper.make_node("Cast", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    assert readings_of(helper.make_graph(long, "g", [], []), ["v0"]) == {"v0": ()}


def external(tmp_path, **entries) -> None:
    path = graph_of(tmp_path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "d.bin", "length": W.nbytes, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    open_graph(path, {W.size})


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"location": "../d.bin"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "link.bin"}, "outside"),
        ({"location": "d" * 300}, "cannot be read"),
        ({"location": "pipe"}, "named pipe"),
        ({"location": "folder"}, "folder"),
        ({"location": "loop"}, "cannot be read"),
        ({"location": "none.bin"}, "are missing"),
        ({"location": ""}, "has no location"),
        ({"offset": 1}, "is said to lie at bytes"),
        ({"offset": -1}, "is said to lie at bytes"),
        ({"offset": 1 << 70}, "is said to lie at bytes"),
        ({"length": 1 << 70}, "is said to lie at bytes"),
        ({"length": 8}, "does not take the 8 bytes"),
        ({"offset": "1" * 5000}, "readable"),
    ],
)
def test_external_data_stay_in_the_folder_and_in_their_file(entries, problem, tmp_path) -> None:
    folder = tmp_path / "graph"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (tmp_path / "d.bin").write_bytes(W.tobytes())
    (folder / "d.bin").write_bytes(W.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "d.bin")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=problem):
        external(folder, **entries)


def test_a_shape_beyond_all_arrays(tmp_path) -> None:
    path = graph_of(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].dims[:] = [0, 1 << 62, 1 << 62]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="has the shape"):
        open_graph(path, {0})


def test_more_nodes_than_any_model_has(tmp_path) -> None:
    count = (1 << 21) + 1
    nodes = b"\x0a\x00" * count
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + _varint(len(nodes)) + nodes)
    with pytest.raises(InputError, match="more than 2097152 nodes"):
        open_graph(tmp_path / "m.onnx", {1})


def _varint(value) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
