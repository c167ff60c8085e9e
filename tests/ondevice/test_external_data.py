"""A graph names the files of its tensors: only regular files in its folder are opened."""

from __future__ import annotations

import os
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.ondevice.device_errors import ExportDirectoryError
from lora_export.ondevice.external_data import (
    GRAPH_LIMIT_BYTES,
    external_files,
    graph_bytes,
    read_graph,
)


def _tensor(location, name="w"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _graph(tensor=None, nodes=(), sparse=()):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(list(nodes), "g", [value], [value])
    graph.initializer.extend([] if tensor is None else [tensor])
    graph.sparse_initializer.extend(sparse)
    return graph


def _inside_constant(location):
    node = helper.make_node("Constant", [], ["y"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=_tensor(location))
    return helper.make_model(_graph(nodes=[node]))


def _inside_branch(location):
    node = helper.make_node("If", ["x"], ["y"])
    inner = _inside_constant(location).graph
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPHS, graphs=[inner])
    return helper.make_model(_graph(nodes=[node]))


def _inside_function(location):
    model = helper.make_model(_graph())
    node = helper.make_node("Constant", [], ["y"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSORS, tensors=[_tensor(location)])
    model.functions.append(helper.make_function("d", "f", [], ["y"], [node], []))
    return model


def _sparse(location):
    sparse = onnx.SparseTensorProto(values=_tensor(location), dims=[9])
    return helper.make_model(_graph(sparse=[sparse]))


def _training(location):
    model = helper.make_model(_graph())
    model.training_info.add().algorithm.CopyFrom(_graph(_tensor(location)))
    return model


PLACES = {
    "an initializer": lambda location: helper.make_model(_graph(_tensor(location))),
    "a constant": _inside_constant,
    "a branch": _inside_branch,
    "a function": _inside_function,
    "a sparse tensor": _sparse,
    "training": _training,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "a/../../secret", "link", "deep/x", "\\0x"]
)
def test_a_file_outside_the_folder_is_refused_wherever_a_graph_names_it(place, location, tmp_path):
    (tmp_path / "secret").write_bytes(b"12345678")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("../secret")
    (folder / "deep").symlink_to("..")
    (tmp_path / "x").write_bytes(b"12345678")
    name = location.replace("\\0", "\0")
    (folder / "graph.onnx").write_bytes(PLACES[place](name).SerializeToString())
    with pytest.raises(ExportDirectoryError, match="leads outside its folder") as caught:
        read_graph(folder / "graph.onnx")
    assert repr(name) in caught.value.message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is missing"),
        (os.mkfifo, "named pipe"),
        (os.mkdir, "folder"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
    ],
)
def test_a_file_that_is_no_regular_one_is_refused(make, words, tmp_path):
    model = helper.make_model(_graph(_tensor("w.bin")))
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    make(tmp_path / "w.bin")
    with pytest.raises(ExportDirectoryError, match=words):
        read_graph(tmp_path / "graph.onnx")


def test_what_onnx_names_is_found_and_nothing_else(tmp_path):
    model = helper.make_model(_graph(_tensor("w.bin")))
    model.graph.initializer.append(_tensor("weights/v.bin", "v"))
    model.graph.initializer.append(
        numpy_helper.from_array(np.frombuffer(b"location" * 9, np.uint8), "location")
    )
    model.doc_string = "location ../x"
    data = model.SerializeToString()
    assert external_files(data) == {"w.bin", "weights/v.bin"}
    (tmp_path / "weights").mkdir()
    for name in ("w.bin", "weights/v.bin"):
        (tmp_path / name).write_bytes(b"12345678")
    (tmp_path / "graph.onnx").write_bytes(data)
    assert read_graph(tmp_path / "graph.onnx") == data


def test_every_cut_and_many_damages_end_in_the_same_error(tmp_path):
    data = helper.make_model(_graph(_tensor("../x"), sparse=[])).SerializeToString()
    random = np.random.default_rng(0)
    for index in range(3000):
        raw = bytearray(data[: random.integers(len(data) + 1)] if index % 3 == 0 else data)
        for _ in range(random.integers(4)):
            if raw:
                raw[random.integers(len(raw))] = random.integers(256)
        try:
            found = external_files(bytes(raw))
        except ValueError:
            continue
        try:
            model = onnx.load_model_from_string(bytes(raw))
        except Exception:  # noqa: BLE001  (the parser of protobuf refuses more)
            continue
        named = {
            entry.value
            for each in model.graph.initializer
            for entry in each.external_data
            if entry.key == "location"
        }
        assert named <= found


def test_a_file_larger_than_protobuf_reads_is_not_read(tmp_path):
    with (tmp_path / "graph.onnx").open("wb") as stream:
        stream.truncate(GRAPH_LIMIT_BYTES + 1)
    with pytest.raises(ExportDirectoryError, match="larger than"):
        graph_bytes(tmp_path / "graph.onnx")


def test_zeros_are_no_graph_and_are_refused_at_once():
    began = time.process_time()
    with pytest.raises(ValueError, match="number 0"):
        external_files(bytes(100 << 20))
    assert time.process_time() - began < 1
