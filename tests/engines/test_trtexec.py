"""Builds through ``trtexec``, by a double of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.core.engine_record import read_engine_record
from lora_export.core.manifest import read_manifest
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.trt import open_trt
from tests.cli.exports import manifest_of
from tests.cli.running import call, snapshot, stagings
from tests.engines.test_engine_build import TARGET, texts, trt_version
from tests.helpers.double import install_double

if TYPE_CHECKING:
    from collections.abc import Callable

FAKE = Path(__file__).resolve().parents[1] / "fakes" / "trtexec.py"


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the doubles into place; return the file that gets the command line."""
    install_double(monkeypatch)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "trtexec").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    (folder / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TRTEXEC_LOG", str(tmp_path / "called.json"))
    return tmp_path / "called.json"


@pytest.mark.parametrize(("name", "graph"), [("merged", "one"), ("swappable", "swappable")])
def test_it_builds_what_the_api_builds(
    export: Callable[[str], Path], capsys: Any, called: Path, *, name: str, graph: str
) -> None:
    export_dir = export(name)
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", graph, "--trtexec")
    assert result.code == 0, result.err
    assert (
        "by the library 'tensorrt-double' 10.3.0 on Orin (double): TensorRT did not run"
        in result.out
    )
    record = read_engine_record(trt_version(export_dir, graph))
    assert (record.tool, record.library) == ("trtexec", "tensorrt-double")
    assert record.command is not None
    assert record.command[1:] == json.loads(called.read_text())[1:]
    assert "--stronglyTyped" in record.flags
    assert record.outputs["logits"].dtype == "float32"
    assert stagings(export_dir) == []
    assert not list(export_dir.glob(".lora-export-*"))
    with open_trt(export_dir, read_manifest(export_dir), graph, TARGET) as opened:
        feeds = texts(2, 9)
        expected = OrtRunner(export_dir / ("base.onnx" if name == "swappable" else "one.onnx"))
        found = opened.run(feeds)["logits"]
        np.testing.assert_allclose(found, expected.run(feeds)["logits"], atol=1e-6)
    timing = f"engines/{TARGET}.trt10.3.0.timing"
    assert (export_dir / timing).read_bytes() == b"timings"
    assert timing in manifest_of(export_dir)["files"]


@pytest.mark.parametrize("library", ["tensorrt-double", "tensorrt"])
@pytest.mark.parametrize("module", [True, False])
def test_the_record_names_the_library_that_trtexec_is_of(  # noqa: PLR0917
    export: Callable[[str], Path], capsys: Any, called: Path, monkeypatch: pytest.MonkeyPatch,
    library: str, module: bool,
) -> None:  # fmt: skip
    """The version that the program prints counts, in NVIDIA's words too, not the module's."""
    if not module:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    if library == "tensorrt":
        program = called.parent / "bin" / "trtexec"
        line = program.read_text().replace("exec ", "").rstrip()
        program.write_text(f"{line} | sed s/TensorRT-double/TensorRT/\n")
    export_dir = export("merged")
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one", "--trtexec")
    assert result.code == 0, result.err
    record = read_engine_record(trt_version(export_dir, "one"))
    assert (record.library, record.tensorrt) == (library, "10.3.0")


def test_a_build_that_fails_leaves_nothing(
    export: Callable[[str], Path], capsys: Any, called: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC_FAILS", "1")
    export_dir = export("merged")
    before = snapshot(export_dir)
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one", "--trtexec")
    assert result.code == 1
    assert "the build broke off" in result.message
    assert "Run it by hand: " in result.message
    assert snapshot(export_dir) == before


def test_weights_are_not_marked_one_by_one(
    export: Callable[[str], Path], capsys: Any, called: Path
) -> None:
    export_dir = export("merged")
    result = call(capsys, "build", export_dir, "--target", TARGET, "--refit", "--trtexec")
    assert result.code == 2
    assert "all weights of an engine refittable, or none" in result.message
    assert not called.exists()


def test_it_is_not_there(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = call(capsys, "build", export("merged"), "--target", TARGET, "--trtexec")
    assert result.code == 7
    assert "libnvinfer-bin" in result.message


def test_several_profiles_are_numbered(
    export: Callable[[str], Path], capsys: Any, called: Path
) -> None:
    export_dir = export("decoder")
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one", "--trtexec")
    assert result.code == 0, result.err
    assert [each for each in json.loads(called.read_text()) if each.startswith("--profile=")] == [
        "--profile=0",
        "--profile=1",
    ]
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as opened:
        prefill, step = opened.runner.profiles
        assert (prefill["input_ids"].max[1], step["input_ids"].max[1]) == (160, 1)


def test_a_program_that_cannot_be_started_is_named(
    export: Callable[[str], Path], capsys: Any, called: Path
) -> None:
    program = called.parent / "bin" / "trtexec"
    program.write_bytes(b"\x7fELF of another machine")
    export_dir = export("merged")
    before = snapshot(export_dir)
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one", "--trtexec")
    assert result.code == 1
    assert f"{program} cannot be started: Exec format error" in result.message
    assert snapshot(export_dir) == before
