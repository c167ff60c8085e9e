"""Engines of TensorRT for RTX: built here by the real library, for GPUs that are elsewhere."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands import engines
from lora_export.core.engine_record import read_engine_record
from lora_export.core.errors import LoraExportError
from lora_export.core.manifest import read_manifest
from lora_export.core.targets import RTX
from lora_export.engines import ahead_of_time
from lora_export.engines.engine_options import EngineOptions
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.build_record import read_record, require_device, require_plan
from lora_export.ondevice.trt.cuda import Gpu
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.triton.engine_models import engines_for
from tests.cli.exports import assert_intact
from tests.cli.running import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTIONS = EngineOptions(library=TENSORRT_RTX)
real = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT for RTX is not installed: it has wheels for x86-64 Linux and Windows",
)


def plan_of(export_dir: Path, stem: str, target: str = RTX) -> Path:
    (plan,) = (export_dir / "engines").glob(f"{stem}.{target}.rtx*.plan")
    return plan


@real
@pytest.mark.parametrize(
    ("kind", "stems"),
    [
        ("merged", ["one", "two"]),
        ("swappable", ["swappable"]),
        ("decoder", ["one"]),
        ("static", ["one"]),
        ("pair", ["decoder.one", "encoder.one"]),
    ],
)
def test_graphs_that_serve_adapters_are_built(
    export: Callable[[str], Path], kind: str, stems: list[str]
) -> None:
    export_dir = export(kind)
    records = engines.build(export_dir, RTX, options=OPTIONS)
    assert sorted(each["graph"] for each in records) == stems
    for stem in stems:
        plan = plan_of(export_dir, stem)
        record = read_engine_record(plan)
        require_plan(plan, read_record(plan))
        assert (record.library, record.built_on, record.gpu) == (TENSORRT_RTX, "host", None)
        assert record.capabilities == ["8.0", "8.6", "8.9", "12.0"]
        assert record.peak_host_bytes > record.plan.bytes
        assert set(record.inputs) >= {"input_ids"}
    if kind != "swappable":  # whose adapters have no graphs
        assert_intact(export_dir)


@real
def test_a_swappable_engine_takes_the_adapter_as_inputs(export: Callable[[str], Path]) -> None:
    export_dir = export("swappable")
    engines.build(export_dir, RTX, options=OPTIONS)
    record = read_engine_record(plan_of(export_dir, "swappable"))
    assert sum("lora" in name for name in record.inputs) > 2


@real
@pytest.mark.parametrize(
    ("target", "asked", "capabilities"),
    [
        ("rtx-ada", (), ["8.9"]),
        (RTX, ("8.6", "12.1"), ["8.6", "12.1"]),
        ("a100", ("8.0",), ["8.0"]),
    ],
)
def test_an_engine_for_some_gpus(
    export: Callable[[str], Path], target: str, asked: tuple[str, ...], capabilities: list[str]
) -> None:
    export_dir = export("merged")
    engines.build(
        export_dir, target, graphs=["one"], options=replace(OPTIONS, compute_capabilities=asked)
    )
    record = read_engine_record(plan_of(export_dir, "one", target))
    assert record.capabilities == capabilities
    assert record.settings["compute_capabilities"] == capabilities


@real
def test_the_same_build_twice_is_the_same_plan(export: Callable[[str], Path]) -> None:
    export_dir = export("merged")
    (first,) = engines.build(export_dir, RTX, graphs=["one"], options=OPTIONS)
    (second,) = engines.build(export_dir, RTX, graphs=["one"], options=OPTIONS)
    assert first["plan"]["file"] == second["plan"]["file"]
    assert abs(first["plan"]["bytes"] - second["plan"]["bytes"]) < 4096


@real
def test_ctrl_c_leaves_nothing(export: Callable[[str], Path]) -> None:
    export_dir = export("merged")
    before = sorted(path.name for path in export_dir.rglob("*"))

    class Interrupting:
        def start(self, description: str, total: int | None = None) -> None:
            if description.startswith("Building"):
                raise KeyboardInterrupt
            del total

        def advance(self, count: int) -> None: ...

        def note(self, text: str) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        engines.build(export_dir, RTX, graphs=["one"], options=OPTIONS, progress=Interrupting())
    left = sorted(path.name for path in export_dir.rglob("*"))
    assert [name for name in left if name not in before and not name.startswith(".")] == []


@real
def test_a_server_is_not_given_the_plan(export: Callable[[str], Path]) -> None:
    export_dir = export("merged")
    engines.build(export_dir, RTX, graphs=["one"], options=OPTIONS)
    with pytest.raises(LoraExportError, match="has no TensorRT engine of 'one'"):
        engines_for(export_dir, read_manifest(export_dir), "one")


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--refit"], 4, "needs a CUDA driver to build with --refit"),
        (["--strip-weights"], 4, "needs a CUDA driver to build with --strip-weights"),
        (["--version-compatible"], 2, "for its own release"),
        (["--hardware-compatible", "ampere+"], 2, "for its own release"),
        (["--compute-capability", "9.9"], 2, "no compute capability '9.9'"),
        (["--compute-capability", ""], 2, "no compute capability ''"),
        (["--compute-capability", "7.5,8.6"], 4, "in float32 for compute capability 7.5"),
        (["--precision", "fp16"], 2, "the export is float32, not fp16"),
        (["--profile", "batch=1:2:3,width=1:1:1"], 2, "width"),
        (["--graph", "absent"], 2, "no graph 'absent'"),
    ],
)
def test_what_is_no_build_is_refused_before_it(
    export: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    said: str,
) -> None:
    export_dir = export("merged")
    result = call(capsys, "build", str(export_dir), "--target", RTX, *flags)
    assert (result.code, said in result.err) == (code, True), result.err
    assert not (export_dir / "engines").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "rtx-ada", "--compute-capability", "8.9"], "--builder tensorrt-rtx"),
        (["--target", "jetson-orin", "--builder", "tensorrt-rtx"], "builds no engine for"),
        (["--target", RTX, "--builder", "tensorrt"], "is for TensorRT for RTX"),
        (
            ["--target", "rtx-ada", "--builder", "tensorrt-rtx", "--compute-capability", "8.6"],
            "has compute capability 8.9",
        ),
    ],
)
def test_a_builder_and_a_target_that_do_not_fit(
    export: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    result = call(capsys, "build", str(export("merged")), *flags)
    assert (result.code, said in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    ("version", "said"), [("1.3.0", "older than 1.7"), ("2.0.0", "newer than")]
)
def test_a_release_that_is_not_supported(
    export: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    said: str,
) -> None:
    module = types.ModuleType("tensorrt_rtx")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    result = call(capsys, "build", str(export("merged")), "--target", RTX)
    assert (result.code, said in result.err) == (4, True), result.err


def test_a_library_that_is_missing_says_how_to_install_it(
    export: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = call(capsys, "build", str(export("merged")), "--target", RTX)
    assert result.code == 7
    assert "TensorRT for RTX is not installed" in result.err
    assert "pip install 'tensorrt-rtx-cu12" in result.err


@real
def test_a_build_that_needs_more_memory_than_there_is(
    export: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead_of_time, "available_bytes", lambda: 100_000_000)
    export_dir = export("merged")
    result = call(capsys, "build", str(export_dir), "--target", RTX)
    assert (result.code, "0.1 GB are available" in result.err) == (4, True), result.err
    assert not (export_dir / "engines").exists()


def test_a_plan_is_described_without_the_library(
    export: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    export_dir = export("merged")
    result = call(capsys, "build", str(export_dir), "--target", RTX, "--dry-run", "--json")
    plans = json.loads(result.out)["dry_run"]
    assert [each["plan"] for each in plans] == [
        "engines/one.rtx.rtx1.7.plan",
        "engines/two.rtx.rtx1.7.plan",
    ]
    assert {each["trtexec"] for each in plans} == {None}


def _record(named: list[str]) -> Any:
    return {
        "graph": "one",
        "target": RTX,
        "library": TENSORRT_RTX,
        "tensorrt": "1.7.1.116",
        "built_on": "host",
        "capabilities": named or ["8.0", "8.6", "8.9", "12.0"],
        "settings": {"compute_capabilities": named},
    }


@pytest.mark.parametrize(
    ("named", "here", "fits"),
    [
        ([], "8.0", True),
        ([], "8.7", True),
        ([], "12.1", True),
        ([], "7.5", False),
        (["8.9"], "8.9", True),
        (["8.9"], "8.6", False),
        (["8.9"], "12.0", False),
    ],
)
def test_a_plan_runs_on_the_gpus_that_it_was_built_for(
    named: list[str], here: str, *, fits: bool
) -> None:
    def check() -> None:
        require_device(
            _record(named),
            library=TENSORRT_RTX,
            tensorrt="1.7.1.116",
            driver="13.0",
            gpu=Gpu("a card", here, 1 << 33),
        )

    if fits:
        check()
    else:
        with pytest.raises(DeviceError, match=rf"this GPU is a card \({here}\)"):
            check()


def test_a_plan_of_another_release_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"built by TensorRT for RTX 1\.7\.1\.116, this is 1\.8"):
        require_device(
            _record([]),
            library=TENSORRT_RTX,
            tensorrt="1.8.0",
            driver="13.0",
            gpu=Gpu("a card", "8.9", 1 << 33),
        )
