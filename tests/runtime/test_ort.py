"""ONNX Runtime's errors, translated once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.errors import (
    ExportDirectoryError,
    MissingRuntimeError,
    UnsupportedError,
    UsageError,
)
from lora_export.runtime.ort import OrtRunner, require_onnxruntime

if TYPE_CHECKING:
    from pathlib import Path


def save(path: Path, op_type: str = "Add", domain: str = "") -> Path:
    a, b, c = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "abc")
    node = helper.make_node(op_type, ["a", "b"], ["c"], domain=domain)
    graph = helper.make_graph([node], "main", [a, b], [c])
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_runner_names_and_runs(tmp_path: Path) -> None:
    runner = OrtRunner(save(tmp_path / "g.onnx"))
    assert (runner.inputs, runner.outputs) == (("a", "b"), ("c",))
    ones = np.ones(3, np.float32)
    outputs = runner.run({"a": ones, "b": ones, "not an input": ones})
    assert list(outputs) == ["c"]
    assert outputs["c"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_graph_that_cannot_be_opened_is_a_damaged_export(tmp_path: Path, content) -> None:
    path = tmp_path / "g.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportDirectoryError, match=r"g\.onnx") as caught:
        OrtRunner(path)
    assert "\n" not in caught.value.message


def test_unknown_operator_is_one_of_ours(tmp_path: Path) -> None:
    with pytest.raises((ExportDirectoryError, UnsupportedError), match=r"g\.onnx"):
        OrtRunner(save(tmp_path / "g.onnx", "NoSuchOperator"))


def test_inputs_that_do_not_fit_are_one_of_ours(tmp_path: Path) -> None:
    runner = OrtRunner(save(tmp_path / "g.onnx"))
    with pytest.raises(ExportDirectoryError, match="failed in ONNX Runtime"):
        runner.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})


def test_an_index_outside_of_a_table_is_the_users(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["out"])
    table = numpy_helper.from_array(np.ones((5, 2), np.float32), "table")
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 2])], [table],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "g.onnx",
    )
    with pytest.raises(UsageError, match="index 7, and a table of the model ends at 4") as caught:
        OrtRunner(tmp_path / "g.onnx").run({"ids": np.array([1, 7])})
    assert "vocabulary" in caught.value.hint


def test_absent_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError) as caught:
        require_onnxruntime()
    assert caught.value.exit_code == 7
    assert "pip install -e '.[cpu]'" in (caught.value.hint or "")


def test_a_missing_input_and_an_adapter_of_another_graph_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "g.onnx")
    with pytest.raises(UsageError, match=r"'g\.onnx' also reads 'b'") as caught:
        OrtRunner(path).run({"a": np.ones(1, np.float32)})
    assert caught.value.hint == "Its inputs: a, b."
    for other in (lambda: OrtRunner(path, adapter={"q.lora_A.weight": np.ones(1)}),
                  lambda: OrtRunner(path).with_row(1, None)):  # fmt: skip
        with pytest.raises(ExportDirectoryError, match=r"has no input '(q\.lora_A|adapter_ids)"):
            other()


def test_a_closed_runner_is_refused_and_so_are_those_of_the_same_session(tmp_path: Path) -> None:
    feeds = dict.fromkeys("ab", np.ones(1, np.float32))
    with OrtRunner(save(tmp_path / "g.onnx")) as runner:
        other = runner.with_adapter({})
        assert other.run(feeds) == runner.run(feeds)
    runner.close()
    for each in (runner, other):
        with pytest.raises(UsageError, match=r"'g\.onnx' was closed"):
            each.run(feeds)
