"""ctypes and libcudart: what a C library gets, where there is a compiler; no CUDA runs here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.cuda import Cuda, DeviceBuffer, open_cuda

SOURCE = Path(__file__).resolve().parents[2] / "fakes" / "cudart.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    built = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(built), str(SOURCE)], check=True)
    return built


@pytest.fixture
def cuda(library: Path, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    monkeypatch.setenv("LORA_EXPORT_CUDART", str(library))
    return open_cuda()


def test_what_the_device_is(cuda: Cuda) -> None:
    gpu = cuda.gpu()
    assert (gpu.name, gpu.compute_capability) == ("Orin (double in C)", "8.7")
    assert gpu.memory_bytes == 1 << 40
    assert cuda.versions() == ("13.1", "12.6")


def test_memory_goes_there_and_back(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    buffer = DeviceBuffer(cuda)
    values = np.arange(1000, dtype=np.float32)
    assert buffer.reserve(values.nbytes) is True
    assert buffer.reserve(16) is False
    cuda.copy_to_device(buffer.address, values, stream)
    found = np.zeros_like(values)
    cuda.copy_to_host(found, buffer.address, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(found, values)
    buffer.close()
    buffer.close()
    cuda.destroy_stream(stream)


def test_an_empty_tensor_has_an_address(cuda: Cuda) -> None:
    buffer = DeviceBuffer(cuda)
    assert buffer.reserve(0) is True
    assert buffer.address != 0
    cuda.copy_to_device(buffer.address, np.zeros((2, 0), np.float32), 0)
    buffer.close()


def test_recordings(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    cuda.begin_capture(stream)
    made = cuda.end_capture(stream)
    cuda.launch(made, stream)
    cuda.destroy_executable(made)


def test_what_fails_is_named(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"cudaMalloc failed: out of memory \(2\)") as error:
        cuda.allocate((1 << 33) + 1)
    assert "smaller profiles" in (error.value.hint or "")
    with pytest.raises(DeviceError, match="cudaStreamSynchronize failed: invalid"):
        cuda.synchronize(1)


def test_no_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_EXPORT_CUDART", "/nowhere/libcudart.so")
    with pytest.raises(DeviceError, match="is not to be found") as error:
        open_cuda()
    assert error.value.exit_code == 7
