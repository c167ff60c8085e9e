"""Repositories of TensorRT engines: whose they are, and which is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_export.commands.engines import build as build_engines
from lora_export.triton.check_repository import check_repository
from tests.cli.running import call
from tests.helpers.double import install_double
from tests.helpers.triton_config import read_config

TARGET = "jetson-orin"  # the double of TensorRT stands for its GPU


@pytest.fixture
def engines(served, tmp_path, monkeypatch) -> Path:
    """An export with engines of two adapters, whose records say that TensorRT made them."""
    export = Path(shutil.copytree(served["merged"], tmp_path / "out"))
    install_double(monkeypatch)
    build_engines(export, TARGET, graphs=["a", "b"])
    for record in (export / "engines").glob("*.json"):
        rewrite(record, library="tensorrt")
    return export


def rewrite(record: Path, **keys: object) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), **keys}))


def test_engines_by_compute_capability(engines, tmp_path, capsys):
    words = ("--backend", "tensorrt", "--adapter", "a", "--name", "m", "--max-batch-size", "4096")
    result = call(capsys, "triton", engines, "--repository", tmp_path / "models", *words)
    assert result.code == 0, result.err
    config = read_config(tmp_path / "models/m-a")
    (plan,) = (engines / "engines").glob("a.*.plan")
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.7": plan.name}
    record = json.loads(plan.with_suffix(".json").read_text())
    assert [each.name for each in config.input] == list(record["inputs"])
    sizes = [each["max"][0] for each in record["settings"]["profiles"][0].values()]
    assert config.max_batch_size == min(sizes) < 4096
    assert (tmp_path / "models/m-a/1" / plan.name).read_bytes() == plan.read_bytes()
    assert check_repository(tmp_path / "models") == {"m-a": []}
    result = call(capsys, "triton", "add", engines, "b", "--repository", tmp_path / "models")
    assert result.code == 0, result.err
    assert check_repository(tmp_path / "models") == {"m-a": [], "m-b": []}
    next((tmp_path / "models/m-b/1").glob("*.plan")).unlink()
    (found,) = check_repository(tmp_path / "models")["m-b"]
    assert "for compute capability 8.7, is missing" in found


@pytest.mark.parametrize(
    ("keys", "code", "text"),
    [
        ({"library": "tensorrt-double"}, 4, "built by the library 'tensorrt-double'"),
        ({"library": "tensorrt-rtx"}, 4, "built by TensorRT for RTX"),
        ({"format_version": 1, "double": True}, 4, "built by the library 'test double'"),
        ({"base_fingerprint": "0" * 64}, 3, "of another base"),
        ({"graph": 1}, 3, "damaged"),
    ],
)
def test_engines_that_do_not_belong_are_refused(engines, tmp_path, capsys, keys, code, text):  # noqa: PLR0917
    (record,) = (engines / "engines").glob("a.*.json")
    rewrite(record, **keys)
    result = call(capsys, "triton", engines, "--repository", tmp_path / "models",
                  "--backend", "tensorrt", "--adapter", "a")  # fmt: skip
    assert (result.code, text in result.message) == (code, True), result.err
    assert not (tmp_path / "models").exists()


def test_which_engine_is_served_is_no_guess(engines, tmp_path, capsys):
    (plan,) = (engines / "engines").glob("a.*.plan")
    for path in (plan, plan.with_suffix(".json")):
        shutil.copy(path, path.with_name(path.name.replace("trt10.3.0", "trt10.7.0")))
    words = ("--repository", tmp_path / "models", "--backend", "tensorrt")
    result = call(capsys, "triton", engines, *words, "--adapter", "a")
    assert (result.code, "are both for 8.7" in result.message) == (2, True)
    result = call(capsys, "triton", engines, *words, "--adapter", "c")
    assert (result.code, "no TensorRT engine of 'c'" in result.message) == (4, True)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_optional_inputs_are_refused_by_backends_that_take_none(served, tmp_path, capsys, backend):
    result = call(capsys, "triton", served["swappable"], "--repository", tmp_path / "models",
                  "--backend", backend)  # fmt: skip
    assert result.code == 4
    assert "optional inputs of a swappable graph" in result.message
    assert "--backend python" in result.message
    assert not (tmp_path / "models").exists()
