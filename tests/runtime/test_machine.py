from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.core import cgroups as cgroups_module
from lora_export.runtime import machine
from lora_export.runtime.machine import Gpu
from tests.fakes.nvml import FakeNvml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Fake = pytest.MonkeyPatch


def _set(pointer: Any, value: int) -> int:
    pointer._obj.value = value
    return 0


class FakeCuda:
    """The CUDA driver of a Jetson, where NVML tells nothing."""

    def cuInit(self, flags: Any) -> int:  # noqa: N802  (CUDA's names)
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        return _set(count, 1)

    def cuDeviceGet(self, device: Any, index: Any) -> int:  # noqa: N802
        return 0

    def cuDeviceGetName(self, buffer: Any, length: Any, device: Any) -> int:  # noqa: N802
        buffer.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:  # noqa: N802
        return _set(total, 2000)

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:  # noqa: N802
        return _set(value, {75: 8, 76: 7}[attribute.value])


def libraries(found: dict[str, object]) -> Callable[[str], object]:
    def load(name: str) -> object:
        if name not in found:
            raise OSError(name)
        return found[name]

    return load


def test_a_gpu_is_described_by_nvml(monkeypatch: Fake) -> None:
    nvml = FakeNvml(count=1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert machine.probe_gpus() == ((Gpu("NVIDIA Fake", "8.7", 1000),), "580.1")
    assert nvml.ended == 2


@pytest.mark.parametrize("nvml", [FakeNvml(count=0), None])
def test_the_cuda_driver_is_asked_where_nvml_reports_nothing(
    monkeypatch: Fake, nvml: object
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(ctypes, "CDLL", libraries({"libcuda.so.1": FakeCuda()}))
    assert machine.probe_gpus() == ((Gpu("Orin", "8.7", 2000),), None)


def test_without_a_driver_there_is_no_gpu(monkeypatch: Fake) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(ctypes, "CDLL", libraries({}))
    assert machine.probe_gpus() == ((), None)


@pytest.mark.parametrize(
    ("first_line", "board", "expected"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
            "NVIDIA Jetson AGX Orin Developer Kit\0",
            "NVIDIA Jetson AGX Orin Developer Kit, L4T R36.4.3",
        ),
        ("# R36", None, "L4T R36"),
        (None, "Some board\0", None),
    ],
)
def test_jetson(
    monkeypatch: Fake,
    tmp_path: Path,
    first_line: str | None,
    board: str | None,
    expected: str | None,
) -> None:
    for name, text in (("_TEGRA", first_line), ("_BOARD", board)):
        file = tmp_path / name
        if text is not None:
            file.write_text(text, "utf-8")
        monkeypatch.setattr(machine, name, file)
    assert machine.jetson_release() == expected


@pytest.fixture
def cgroups(monkeypatch: Fake, tmp_path: Path) -> Path:
    monkeypatch.setattr(cgroups_module, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups_module, "_OWN_CGROUP", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_the_smallest_limit_of_nested_groups_counts(cgroups: Path) -> None:
    write(cgroups / "own", "0::/user.slice/job\n")
    write(cgroups / "cgroup" / "user.slice" / "job" / "memory.max", "max\n")
    write(cgroups / "cgroup" / "user.slice" / "memory.max", "5000\n")
    write(cgroups / "cgroup" / "memory.max", "9000\n")
    assert machine.memory_limit_bytes() == 5000


@pytest.mark.parametrize(("text", "expected"), [("7000\n", 7000), ("9223372036854771712\n", None)])
def test_version_1_of_control_groups(cgroups: Path, text: str, expected: int | None) -> None:
    write(cgroups / "own", "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n")
    write(cgroups / "cgroup" / "memory" / "memory.limit_in_bytes", text)  # as a container sees it
    assert machine.memory_limit_bytes() == expected


def test_no_control_groups(cgroups: Path) -> None:
    assert machine.memory_limit_bytes() is None


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("max 100000", 16)])
def test_the_cpu_quota_counts(monkeypatch: Fake, cgroups: Path, quota: str, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    write(cgroups / "own", "0::/\n")
    write(cgroups / "cgroup" / "cpu.max", f"{quota}\n")
    assert machine._usable_cpus(32) == expected


def test_this_machine_is_described() -> None:
    found = machine.probe_machine()
    assert 1 <= found.cpus_usable <= found.cpus
    assert (found.memory_available_bytes or 0) <= (found.memory_bytes or 0)
