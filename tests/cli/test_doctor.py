from __future__ import annotations

import pytest

import lora_export
from lora_export.runtime import doctor
from lora_export.runtime.doctor import Cache, Diagnosis, Package
from lora_export.runtime.machine import Gpu, Machine
from tests.cli.running import HEAVY, call, command, python

Capture = pytest.CaptureFixture[str]


def test_json_is_one_document(capsys: Capture) -> None:
    result = call(capsys, "doctor", "--json")
    assert result.code == 0
    assert result.err == ""
    found = result.document
    assert found["lora_export"] == lora_export.__version__
    assert {"numpy", "onnx", "torch", "onnxruntime", "tensorrt"} <= {
        package["module"] for package in found["packages"]
    }
    assert found["machine"]["cpus"] >= 1


def test_a_bare_core_is_told_what_it_lacks() -> None:
    result = command("doctor", without=[*HEAVY, "onnxruntime", "tensorrt"])
    assert result.code == 0, result.err
    assert (
        "    get it      in a clone of lora-export: pip install -e '.[export]'"
        in result.out.splitlines()
    )
    assert "  ONNX Runtime     none" in result.out.splitlines()


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from lora_export.cli import run; run(['doctor', '--json', '--quiet']); "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules], "
        "file=sys.stderr)"
    )
    result = python("-c", code)
    assert result.err.strip().splitlines()[-1] == "[]"


def test_text(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Diagnosis(
        lora_export="1.0",
        python="3.11.7",
        platform="Linux aarch64",
        packages=(
            Package("onnx", {"onnx": "1.19"}, "every command", "pip install -e .", None),
            Package("torch", {}, "tracing", "pip install torch", "is broken"),
        ),
        execution_providers=("CPUExecutionProvider",),
        tensorrt="10.3.0",
        tensorrt_rtx=None,
        compiled=True,
        machine=Machine(
            cpus=12,
            cpus_usable=4,
            memory_bytes=64_000_000_000,
            memory_limit_bytes=8_000_000_000,
            memory_available_bytes=None,
            gpus=(Gpu("Orin", "8.7", 64_000_000_000),),
            driver="540.4.0",
            jetson="AGX Orin, L4T R36.4.3",
        ),
        cache=Cache("/cache", 3, 4_200_000, 100_000_000_000),
        problems=("torch: is broken",),
    )
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    assert call(capsys, "doctor").out == (
        "lora-export 1.0, Python 3.11.7, Linux aarch64\n"
        "installed\n"
        "  onnx  1.19\n"
        "missing\n"
        "  torch\n"
        "    needed for  tracing\n"
        "    get it      pip install torch\n"
        "runtimes\n"
        "  ONNX Runtime     CPUExecutionProvider\n"
        "  TensorRT         10.3.0\n"
        "  TensorRT-RTX     none\n"
        "  compiled module  built\n"
        "machine\n"
        "  processors  4 of 12 usable\n"
        "  memory      unknown available of 64.0 GB, limited to 8.0 GB by its control group\n"
        "  GPU         Orin, 64.0 GB, compute capability 8.7\n"
        "  driver      540.4.0\n"
        "  Jetson      AGX Orin, L4T R36.4.3\n"
        "graph cache\n"
        "  path       /cache\n"
        "  graphs     3 in 4.2 MB\n"
        "  free disk  100.0 GB\n"
        "problems\n"
        "  torch: is broken\n"
    )
