"""ctypes, libcudart and the driver: what a C library gets, where there is a compiler.

No CUDA runs here. The declarations of ``cuda_driver.c`` are those of NVIDIA's ``cuda.h`` (12.9):
``cc -fsyntax-only -include cuda.h`` compares them.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt import cuda_libraries
from lora_export.ondevice.trt.cuda import Cuda, DeviceBuffer, open_cuda
from lora_export.ondevice.trt.cuda_libraries import DriverLibrary, names_for
from tests.fakes.cudart import DoubleCudart

FAKES = Path(__file__).resolve().parents[2] / "fakes"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Doubles of libcudart and of the driver's library, by the names of their sources."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("cuda")
    built = {name: folder / f"{name}.so" for name in ("cudart", "cuda_driver")}
    for name, path in built.items():
        source = FAKES / f"{name}.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return built


@pytest.fixture(params=["cudart", "cuda_driver"])
def cuda(
    request: pytest.FixtureRequest, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Cuda:
    built = str(libraries[request.param])
    if request.param == "cudart":
        monkeypatch.setenv("LORA_EXPORT_CUDART", built)
    else:  # where libcudart is not, the driver is
        names = names_for("linux")._replace(runtime=(), folders=(), driver=("nowhere.so", built))
        monkeypatch.delenv("LORA_EXPORT_CUDART", raising=False)
        monkeypatch.setattr(cuda_libraries, "names_for", lambda platform: names)
    return open_cuda()


def test_what_the_device_is(cuda: Cuda) -> None:
    gpu = cuda.gpu()
    assert (gpu.name, gpu.compute_capability) in {
        ("Orin (double in C)", "8.7"),
        ("RTX (driver double in C)", "8.9"),
    }
    assert gpu.memory_bytes == 1 << 40
    assert cuda.versions() in {("13.1", "12.6"), ("13.1", "13.1")}


def test_another_thread_may_use_it(cuda: Cuda) -> None:
    with ThreadPoolExecutor(1) as pool:
        buffer = DeviceBuffer(cuda)
        assert pool.submit(buffer.reserve, 64).result() is True
        pool.submit(buffer.close).result()


def test_every_function_that_is_called_is_known_of_the_driver() -> None:
    """By the calls in the source: a new one needs a row in the table of the driver's names."""
    called = set(re.findall(r"cuda[A-Z]\w+", inspect.getsource(Cuda)))
    known = {*cuda_libraries._SAME, *vars(DriverLibrary), "cudaGetErrorString"}
    assert called - known == {"cudaGetDeviceProperties_v2"}  # which libcudart alone has


def test_windows_has_other_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def absent(name: str) -> None:
        asked.append(name)
        raise OSError

    package = tmp_path / "nvidia/cuda_runtime/bin"
    toolkit = tmp_path / "toolkit/bin"
    for folder in (package, toolkit):
        folder.mkdir(parents=True)
        (folder / "cudart64_12.dll").touch()
    monkeypatch.delenv("LORA_EXPORT_CUDART", raising=False)
    monkeypatch.setenv("CUDA_PATH", str(toolkit.parent))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(DeviceError, match="neither the CUDA runtime"):
        open_cuda()
    assert asked[0] == "cudart64_13.dll"
    assert asked[-3:] == [
        str(package / "cudart64_12.dll"),
        str(toolkit / "cudart64_12.dll"),
        "nvcuda.dll",
    ]


def test_a_library_without_a_device_is_passed_over(
    libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old driver under a new libcudart has devices, which libcudart does not see."""
    runtime = DoubleCudart()
    runtime.devices = 0
    driver = DriverLibrary(ctypes.CDLL(str(libraries["cuda_driver"])))
    found = [("libcudart.so.13", runtime), ("libcuda.so.1", driver)]
    monkeypatch.setattr("lora_export.ondevice.trt.cuda.cuda_libraries", lambda: iter(found))
    assert open_cuda().gpu().compute_capability == "8.9"
    del found[1]
    with pytest.raises(DeviceError, match=r"libcudart\.so\.13 finds no CUDA device"):
        open_cuda()


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
    with pytest.raises(DeviceError, match="was found") as error:
        open_cuda()
    assert error.value.exit_code == 7
