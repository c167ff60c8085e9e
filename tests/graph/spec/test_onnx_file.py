"""ONNX models from bytes and files."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.spec.onnx_file import parse_onnx, read_onnx


def test_a_model_is_parsed_without_the_files_of_its_weights_and_read_with_them(tmp_path):
    a, b = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "ab")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], bytes(16), raw=True)
    graph = helper.make_graph([helper.make_node("Add", ["a", "w"], ["b"])], "g", [a], [b], [weight])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    model = read_onnx(path)
    assert [each.name for each in model.graph.initializer] == ["w"]
    (tmp_path / "w.bin").unlink()
    assert parse_onnx(path.read_bytes()) == model
    with pytest.raises(ExportDirectoryError, match=r"'w\.bin', which is missing"):
        read_onnx(path)


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\xff garbage")
    with pytest.raises(ExportDirectoryError, match=r"bad\.onnx' is not a readable ONNX model"):
        read_onnx(tmp_path / "bad.onnx")
    with pytest.raises(ExportDirectoryError, match="the graph is not a readable ONNX model"):
        parse_onnx(b"\xff garbage")
    with pytest.raises(ExportDirectoryError, match=r"none\.onnx' cannot be read: No such file"):
        read_onnx(tmp_path / "none.onnx")
