from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from onnx import helper

from lora_export.core.errors import InputError
from lora_export.graph.foreign.proto_skeleton import HERE, read_skeleton
from tests.helpers.foreign import initializer, save_graph

LARGE = np.arange(600, dtype=np.float32).reshape(20, 30)
SMALL = np.arange(30, dtype=np.float32)


@pytest.fixture
def saved(tmp_path):
    constant = helper.make_node("Constant", [], ["c"], value=initializer("", LARGE.T))
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("MatMul", ["s", "c"], ["y"]),
    ]
    return save_graph(
        tmp_path / "m.onnx", nodes, [initializer("w", LARGE), initializer("b", SMALL)], width=20
    )


def test_large_tensors_are_left_out_and_found_by_position(saved) -> None:
    model = read_skeleton(saved)
    data = saved.read_bytes()
    found = {each.name: each for each in model.graph.initializer}
    places = []
    for tensor in (found["w"], model.graph.node[0].attribute[0].t):
        assert not tensor.raw_data
        entries = {each.key: each.value for each in tensor.external_data}
        assert entries["location"] == HERE
        start = int(entries["offset"])
        places.append(data[start : start + int(entries["length"])])
    assert places == [LARGE.tobytes(), np.ascontiguousarray(LARGE.T).tobytes()]
    assert found["b"].raw_data == SMALL.tobytes()


def test_everything_else_is_as_onnx_reads_it(saved) -> None:
    model, whole = read_skeleton(saved), onnx.load(saved)
    for each in (model, whole):
        for tensor in (*each.graph.initializer, each.graph.node[0].attribute[0].t):
            for field in ("raw_data", "external_data", "data_location"):
                tensor.ClearField(field)
    assert model == whole


def test_every_truncation_is_refused(saved, tmp_path) -> None:
    data = saved.read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in range(0, len(data) - 1, 7):
        cut.write_bytes(data[:length])
        try:
            model = read_skeleton(cut)
        except InputError:
            continue
        # cut between two fields: what is left is a model of its own, without what follows
        assert onnx.load_model_from_string(data[:length]).opset_import == model.opset_import


def test_flipped_bytes_never_escape_as_other_errors(saved, tmp_path) -> None:
    data = saved.read_bytes()
    random = np.random.default_rng(0)
    damaged = tmp_path / "damaged.onnx"
    for _ in range(400):
        copy = bytearray(data)
        for place in random.integers(0, len(copy), 3):
            copy[place] = int(random.integers(0, 256))
        damaged.write_bytes(bytes(copy))
        with contextlib.suppress(InputError):
            read_skeleton(damaged)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable ONNX model"):
        read_skeleton(path)


def test_missing_file_and_folder(tmp_path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(InputError, match="cannot read the graph"):
            read_skeleton(path)


def test_deep_nesting_is_refused(tmp_path) -> None:
    """A graph in an attribute in a node in a graph …: the fields are written by hand."""
    message = b"\x12\x82\x10" + b"n" * 2050  # field 2, a name long enough to be looked into
    for _ in range(40):
        for tag in (0x32, 0x2A, 0x0A):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            message = bytes([tag]) + _varint(len(message)) + message
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x3a" + _varint(len(message)) + message)  # ModelProto.graph
    with pytest.raises(InputError, match="nests deeper"):
        read_skeleton(path)


def test_field_that_is_longer_than_its_message_is_refused(tmp_path) -> None:
    inner = b"\x12" + _varint(5000) + b"n" * 2000  # a name of 5000 bytes in a graph of 2003
    path = tmp_path / "long.onnx"
    path.write_bytes(b"\x3a" + _varint(len(inner)) + inner + b"\x00" * 9000)
    with pytest.raises(InputError, match="has no end"):
        read_skeleton(path)


def _varint(value: int) -> bytes:
    low = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return low + (_varint(value >> 7) if value > 0x7F else b"")
