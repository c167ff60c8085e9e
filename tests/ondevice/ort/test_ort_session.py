"""ONNX Runtime's versions: too old for a graph, and those that have to go without an optimizer."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.ondevice.device_errors import InputError, MissingRuntimeError
from lora_export.ondevice.graph_form import FORM_PROPERTY, ORT_FORM
from lora_export.ondevice.ort import ort_session
from lora_export.ondevice.ort.ort_session import OrtSession, crashing_optimizers
from lora_export.runtime.ort import open_session
from lora_export.triton.serving import runners

if TYPE_CHECKING:
    from pathlib import Path

FUSING = ["FuseFp16InitializerToFp32NodeTransformer"]


def save(path: Path, *, ir_version: int = 10) -> Path:
    """Write a float16 product whose factor is an input with a default, as a swappable graph's."""
    import numpy as np

    half = TensorProto.FLOAT16
    a, b = (helper.make_tensor_value_info(name, half, ["n", 4]) for name in "ab")
    factor = helper.make_tensor_value_info("f", half, [4, 4])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "f"], ["b"])], "main", [a, factor], [b],
        initializer=[numpy_helper.from_array(np.ones((4, 4), np.float16), "f")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.ir_version = ir_version
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("version", "names"),
    [("1.12.1", []), ("1.22.1", []), ("1.23.0", FUSING), ("1.23.2", FUSING), ("1.29.0", FUSING),
     ("1.30.0", []), ("1.32.0", []), ("2.0", []), ("1.24.0.dev20260101001", FUSING), ("", [])],
)  # fmt: skip
def test_versions_that_crash_go_without_the_optimizer(version, names):
    assert crashing_optimizers(version) == names
    assert runners.crashing_optimizers(version) == names


def test_every_session_goes_without_it(tmp_path, monkeypatch):
    """Of 1.23 to 1.29 the process would end where a default of a float16 graph is an input."""
    onnxruntime = importlib.import_module("onnxruntime")
    seen = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *args, disabled_optimizers=None, **kwargs) -> None:
            seen.append(disabled_optimizers)
            super().__init__(*args, disabled_optimizers=disabled_optimizers, **kwargs)

    path = save(tmp_path / "g.onnx")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    OrtSession(path)
    open_session(path)
    runners.open_session(path, runners.Settings())
    assert seen == [FUSING] * 3


def test_a_float16_default_that_is_an_input_is_opened_whatever_the_version(tmp_path):
    path = save(tmp_path / "g.onnx")
    code = (
        "import pathlib, sys, numpy as np; "
        "from lora_export.ondevice.ort.ort_session import OrtSession; "
        "session = OrtSession(pathlib.Path(sys.argv[1])); "
        "print(session.run({'a': np.arange(4, dtype=np.float16)[None]})['b'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=False, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[[6.0,", "6.0,", "6.0,", "6.0]]"]  # 0 + 1 + 2 + 3


def test_an_onnxruntime_older_than_the_graph_is_told_apart_from_damage(tmp_path):
    path = save(tmp_path / "new.onnx", ir_version=99)
    for opens in (OrtSession, open_session):
        with pytest.raises(MissingRuntimeError, match=r"too old for .*new\.onnx") as caught:
            opens(path)
        assert "pip install -U onnxruntime" in (caught.value.hint or "")
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(InputError, match="copy or export it again"):
        OrtSession(tmp_path / "bad.onnx")


def test_names_in_a_graph_reach_the_terminal_in_no_other_way_than_by_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    name = "n\x1b[42m\n::error::x"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])
    shape = numpy_helper.from_array(np.array([7, 7]), f"shape {name}")
    unused = numpy_helper.from_array(np.array([1]), f"unused {name}")
    node = helper.make_node("Reshape", ["x", shape.name], ["y"], name=name)
    graph = helper.make_graph([node], name, [x], [y], initializer=[shape, unused])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    session = OrtSession(tmp_path / "graph.onnx")
    with pytest.raises(InputError, match=r"n\\x1b\[42m"):
        session.run({"x": np.ones((1, 2), np.float32)})
    session.close()
    assert capfd.readouterr() == ("", "")


def test_a_path_that_is_no_utf8_is_named_as_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"fold\xffer")
    folder.mkdir()
    with pytest.raises(InputError, match=r"the path is not UTF-8"):
        OrtSession(save(folder / "graph.onnx"))


@pytest.mark.parametrize(("version", "opens"), [("1.23.2", False), ("1.24.0", True), ("2.0", True)])
def test_an_older_version_does_not_compute_the_form_of_a_decoder(
    tmp_path, monkeypatch, version, opens
):
    """Its windows are one position longer: the answers would be others, without a word."""
    value = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])
    again = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Abs", ["a"], ["b"])], "main", [value], [again])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {FORM_PROPERTY: ORT_FORM})
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setattr(ort_session, "onnxruntime_version", lambda: version)
    if opens:
        assert OrtSession(tmp_path / "m.onnx").inputs == ("a",)
        return
    with pytest.raises(MissingRuntimeError, match=r"'ort' needs 1\.24") as caught:
        OrtSession(tmp_path / "m.onnx")
    assert caught.value.exit_code == 7
