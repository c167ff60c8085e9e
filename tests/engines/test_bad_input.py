"""Failed builds and engines as a user sees them: exit code, message, remaining files."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands import engines
from lora_export.core.errors import LoraExportError
from lora_export.core.manifest import read_manifest
from lora_export.engines.engine_options import EngineOptions
from lora_export.runtime.trt import open_trt
from tests.cli.exports import manifest_of
from tests.cli.running import call, snapshot, stagings
from tests.engines.test_engine_build import TARGET, texts, trt_version
from tests.helpers.double import install_double

if TYPE_CHECKING:
    from collections.abc import Callable

Export = "Callable[[str], Path]"


def opened(export_dir: Path) -> None:
    with open_trt(export_dir, read_manifest(export_dir), "one", TARGET) as graph:
        graph.run(texts(1, 4))


def built(export: Callable[[str], Path], **options: Any) -> Path:
    export_dir = export("merged")
    engines.build(export_dir, TARGET, graphs=["one"], options=EngineOptions(**options))
    return export_dir


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(export_dir: Path, text: str, code: int) -> None:
    with pytest.raises(LoraExportError, match=text) as error:
        opened(export_dir)
    assert error.value.exit_code == code


def test_without_tensorrt(
    export: Callable[[str], Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    export_dir = export("merged")
    before = snapshot(export_dir)
    result = call(capsys, "build", export_dir, "--target", TARGET)
    assert result.code == 7
    assert "TensorRT is not installed" in result.message
    assert "JetPack" in result.message
    assert "pip install 'tensorrt>=10.3'" in result.message
    assert snapshot(export_dir) == before


def test_without_a_device(
    export: Callable[[str], Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("merged")
    module.cudart.devices = 0
    result = call(capsys, "build", export_dir, "--target", TARGET)
    assert result.code == 7
    assert "finds no CUDA device" in result.message
    monkeypatch.setenv("LORA_EXPORT_CUDART", "/nowhere/libcudart.so")
    result = call(capsys, "build", export_dir, "--target", TARGET)
    assert result.code == 7
    assert "LORA_EXPORT_CUDART" in result.message


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--target", "jetson-oryn"], 2, "Did you mean 'jetson-orin'?"),
        (["--target", "onnxruntime-cpu"], 2, "there is no engine for it"),
        (["--target", TARGET, "--precision", "fp16"], 2, "Export again with --dtype float16"),
        (["--target", TARGET, "--precision", "fp8"], 2, "unknown precision 'fp8'"),
        (["--target", "auto", "--precision", "bf16"], 4, "does not support bf16"),
        (["--target", TARGET, "--graph", "nine"], 2, "no graph 'nine'"),
        (["--target", TARGET, "--profile", "batch=1:2"], 2, "is not AXIS=SIZE"),
        (["--target", TARGET, "--profile", "batch=4:2:8"], 2, "min 4, opt 2, max 8"),
        (["--target", TARGET, "--profile", "depth=1:2:8"], 2, "the axis 'depth'"),
        (["--target", TARGET, "--profile", f"batch=1:1:{10**20}"], 2, f"max {10**20}"),
        (["--target", TARGET, "--workspace", str(10**14)], 2, "no device has a workspace"),
        (["--target", TARGET, "--hardware-compatible", "volta"], 2, "'volta'"),
        (["--target", "l4", "--hardware-compatible", "same-compute-capability"], 4, "needs Tensor"),
        (["--target", TARGET, "--tensorrt", "9.3"], 4, "older than 10.3"),
        (["--target", TARGET, "--tensorrt", "latest"], 2, "'latest' is not a version"),
    ],
)  # fmt: skip
def test_usage(
    export: Callable[[str], Path], capsys: Any, arguments: list[str], code: int, text: str
) -> None:
    export_dir = export("merged")
    result = call(capsys, "build", export_dir, "--dry-run", *arguments)
    assert (result.code, text in result.message) == (code, True), result.err


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--strip-weights", "cannot leave its weights out"), ("--refit", "as inputs")],
)
def test_what_a_swappable_graph_does_not_take(
    export: Callable[[str], Path], capsys: Any, flag: str, text: str
) -> None:
    export_dir = export("swappable")
    arguments = ["--target", TARGET, "--dry-run", "--graph", "swappable", flag]
    result = call(capsys, "build", export_dir, *arguments)
    assert (result.code, text in result.message) == (2, True), result.err


def test_another_gpu_than_the_target(
    export: Callable[[str], Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = export("merged")
    result = call(capsys, "build", export_dir, "--target", "jetson-thor")
    assert result.code == 4
    assert (
        "'jetson-thor' has compute capability 11.0, this is Orin (double) with 8.7"
        in result.message
    )
    assert "bundle" in result.message
    assert not (export_dir / "engines").exists()


def test_truncated_plan(export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install_double(monkeypatch)
    export_dir = built(export)
    plan = trt_version(export_dir, "one")
    data = plan.read_bytes()
    plan.write_bytes(data[:-7])
    refused(export_dir, "is truncated, or another's|bytes, its record says", 3)
    plan.write_bytes(data[:-7] + b"1234567")
    refused(export_dir, "its SHA-256 differs", 3)


def test_damaged_plan_whose_record_was_corrected(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's own refusal, where nothing else finds it."""
    import hashlib

    install_double(monkeypatch)
    export_dir = built(export)
    plan = trt_version(export_dir, "one")
    data = plan.read_bytes()[:-7]
    plan.write_bytes(data)
    row = {"file": plan.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(plan.with_suffix(".json"), plan=row)
    refused(export_dir, "TensorRT cannot load the plan: .*damaged", 3)


def test_record_that_is_missing_or_damaged(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = built(export)
    record = trt_version(export_dir, "one").with_suffix(".json")
    text = record.read_text()
    edit(record, gpu="a GPU")
    refused(export_dir, "'gpu' is 'a GPU'", 3)
    record.write_text(text)
    edit(record, onnx={})
    refused(export_dir, "it names 0 graphs", 3)
    record.write_text(text[: len(text) // 2])
    refused(export_dir, "not readable JSON", 3)
    record.write_text("[]")
    refused(export_dir, "is not a table", 3)
    record.write_text(text)
    for version in (3, "2", [2], None):
        edit(record, format_version=version)
        refused(export_dir, re.escape(f"format_version {version!r}"), 4)
    record.unlink()
    refused(export_dir, "no build record", 3)


def test_plan_of_another_gpu_version_or_kind(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = built(export)
    record = trt_version(export_dir, "one").with_suffix(".json")
    text = record.read_text()
    edit(record, library="tensorrt")
    refused(export_dir, "was built by TensorRT, this is the library 'tensorrt-double'", 3)
    record.write_text(text)
    monkeypatch.setattr(module, "__name__", "tensorrt")
    refused(export_dir, "was built by the library 'tensorrt-double', this is TensorRT", 3)
    monkeypatch.setattr(module, "__name__", "tensorrt_double")
    record.write_text(text)
    edit(record, tensorrt="10.7.0")
    refused(export_dir, r"built by TensorRT 10\.7\.0, this is 10\.3\.0", 3)
    record.write_text(text)
    module.cudart.driver = 12020
    refused(export_dir, r"with a driver for CUDA 12\.6, this one is for 12\.2", 3)
    module.cudart.driver = 13000
    opened(export_dir)
    module.cudart.driver = 12060
    edit(record, cuda={"driver": "new"})
    refused(export_dir, "'new' is not a version of CUDA", 3)
    record.write_text(text)
    module.cudart.name = "NVIDIA Thor"
    module.cudart.capability = (11, 0)
    refused(
        export_dir,
        r"built for Orin \(double\) \(compute capability 8\.7\), this GPU is NVIDIA Thor",
        3,
    )


def test_record_of_version_1(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT opens what it built; nothing opens what a double built, the double included."""
    module = install_double(monkeypatch)
    export_dir = built(export)
    record = trt_version(export_dir, "one").with_suffix(".json")
    table = json.loads(record.read_text())
    for key in ("library", "built_on", "capabilities"):
        del table[key]
    record.write_text(json.dumps({**table, "format_version": 1, "double": True}))
    refused(
        export_dir, "was built by the library 'test double', this is the library 'tensorrt-do", 3
    )
    monkeypatch.setattr(module, "__name__", "tensorrt")
    refused(export_dir, "was built by the library 'test double', this is TensorRT", 3)
    edit(record, double=False)
    opened(export_dir)


def test_plan_of_another_graph_or_base(
    export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(monkeypatch)
    export_dir = built(export)
    table = manifest_of(export_dir)
    path = export_dir / "lora_export.json"
    path.write_text(json.dumps({**table, "files": {**table["files"], "one.onnx": "0" * 64}}))
    refused(export_dir, "another 'one.onnx' than the export has now", 3)
    base = {**table["base"], "fingerprint": "f" * 64}
    path.write_text(json.dumps({**table, "base": base}))
    refused(export_dir, "is of another base", 3)


def test_manifest_that_was_edited(
    export: Callable[[str], Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is not what the manifest says: nothing is built."""
    install_double(monkeypatch)
    export_dir = export("merged")
    table = manifest_of(export_dir)
    files = {**table["files"], "weights/one.safetensors": "0" * 64}
    (export_dir / "lora_export.json").write_text(json.dumps({**table, "files": files}))
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one")
    assert result.code == 3
    assert "'weights/one.safetensors' does not match the manifest" in result.message
    assert not (export_dir / "engines").exists()


@pytest.mark.parametrize("which", [".plan", ".timing", ".json"])
def test_full_disk(
    export: Callable[[str], Path], capsys: Any, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    install_double(monkeypatch)
    export_dir = built(export)
    for file in (export_dir / "engines").iterdir():
        file.unlink()
    listed = manifest_of(export_dir)["files"]
    real = os.fsync

    def full(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if ".lora-export-" in name and which in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one")
    assert result.code == 3
    assert "No space left on device" in result.message
    left = sorted(each.suffix for each in (export_dir / "engines").iterdir())
    assert left in ([], [".timing"], [".plan", ".timing"])
    assert ".json" not in left
    assert manifest_of(export_dir)["files"] == listed
    assert stagings(export_dir) == []
    monkeypatch.undo()
    install_double(monkeypatch)
    refused(export_dir, "no build record", 3)


def test_interrupted_build(
    export: Callable[[str], Path], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("merged")
    before = snapshot(export_dir)
    real = module.cudart.cudaMemGetInfo
    calls = 0

    def interrupted(free: Any, total: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return int(real(free, total))

    module.cudart.cudaMemGetInfo = interrupted
    result = call(capsys, "build", export_dir, "--target", TARGET, "--graph", "one")
    assert calls >= 5
    assert result.code == 130
    assert snapshot(export_dir) == before


def test_too_little_memory(export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    module = install_double(monkeypatch)
    export_dir = built(export)
    module.cudart.limit_bytes = 100
    refused(export_dir, r"cudaMalloc failed: out of memory", 1)


@pytest.mark.parametrize("name", [".lora_export.lock", ".lora_export.next"])
def test_what_is_in_the_way_of_a_change_is_found_before_the_build(
    export: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = install_double(monkeypatch)
    export_dir = export("merged")
    (export_dir / name).unlink(missing_ok=True)
    os.mkfifo(export_dir / name)
    before = snapshot(export_dir)
    with pytest.raises(LoraExportError, match="lora_export"):
        engines.build(export_dir, TARGET)
    with pytest.raises(LoraExportError, match="lora_export"):
        engines.refit(export_dir, TARGET, "one")
    assert module.builds == 0
    assert snapshot(export_dir) == before
