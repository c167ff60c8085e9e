"""The machine: processors, memory, GPUs, Jetson; a probe returns None where nothing is known."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lora_export.core.cgroups import memory_limit_bytes, own_groups, read_text
from lora_export.core.memory import available_bytes
from lora_export.runtime.nvml import driver_version, nvml_devices

__all__ = ["Gpu", "Machine", "jetson_release", "memory_limit_bytes", "probe_gpus", "probe_machine"]

_CUDA: Final = "libcuda.so.1"
_NAME_BYTES: Final = 96
_MEMINFO: Final = Path("/proc/meminfo")
_TEGRA: Final = Path("/etc/nv_tegra_release")
_BOARD: Final = Path("/proc/device-tree/model")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: its name, compute capability (``8.7``) and memory."""

    name: str
    compute_capability: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Machine:
    """The hardware and system of the machine.

    Attributes:
        cpus: Processors of the machine.
        cpus_usable: Those that this process may use: affinity and control group's quota.
        memory_bytes: Its memory.
        memory_limit_bytes: What the control group allows, where it does limit.
        memory_available_bytes: What can be taken without swapping.
        gpus: NVIDIA GPUs.
        driver: Version of the NVIDIA driver.
        jetson: Board and L4T release of a Jetson.
    """

    cpus: int
    cpus_usable: int
    memory_bytes: int | None
    memory_limit_bytes: int | None
    memory_available_bytes: int | None
    gpus: tuple[Gpu, ...]
    driver: str | None
    jetson: str | None


def probe_machine() -> Machine:
    """Ask the operating system and the NVIDIA driver; never raises."""
    cpus = os.cpu_count() or 1
    gpus, driver = probe_gpus()
    return Machine(
        cpus=cpus,
        cpus_usable=_usable_cpus(cpus),
        memory_bytes=_total_memory_bytes(),
        memory_limit_bytes=memory_limit_bytes(),
        memory_available_bytes=available_bytes(),
        gpus=gpus,
        driver=driver,
        jetson=jetson_release(),
    )


def _usable_cpus(cpus: int) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus
    for folder in own_groups():
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            usable = min(usable, max(1, math.ceil(int(quota) / int(period))))
    return usable


def _total_memory_bytes() -> int | None:
    for line in (read_text(_MEMINFO) or "").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def jetson_release() -> str | None:
    """Return board and release of a Jetson, or None.

    A first line ``# R36 (release), REVISION: 4.3, …`` becomes ``L4T R36.4.3``.
    """
    text = read_text(_TEGRA)
    if text is None:
        return None
    head, _, rest = text.lstrip("# ").partition(" ")
    revision = rest.partition("REVISION:")[2].partition(",")[0].strip()
    release = f"L4T {head}.{revision}" if revision else f"L4T {head}"
    board = (read_text(_BOARD) or "").strip("\0 ")
    return f"{board}, {release}" if board else release


def probe_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """Return the NVIDIA GPUs and the driver's version.

    From NVML; where that is absent or reports nothing (a Jetson), from the CUDA driver.
    """
    with nvml_devices() as devices:
        gpus = tuple(
            Gpu(each.name() or f"GPU {index}", each.compute_capability(), each.memory_bytes())
            for index, each in enumerate(devices)
        )
    if gpus:
        return gpus, driver_version()
    try:
        return _from_cuda(ctypes.CDLL(_CUDA)), None
    except (OSError, AttributeError, ValueError):
        return (), None  # not installed, or too old for what is asked


def _text(buffer: ctypes.Array[ctypes.c_char]) -> str:
    return buffer.value.decode("utf-8", "replace")


def _from_cuda(cuda: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int(0)
    if cuda.cuInit(ctypes.c_uint(0)) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    gpus: list[Gpu] = []
    for index in range(count.value):
        device = ctypes.c_int(0)
        if cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)) != 0:
            continue
        name = ctypes.create_string_buffer(_NAME_BYTES)
        named = cuda.cuDeviceGetName(name, ctypes.c_int(_NAME_BYTES), device) == 0
        total = ctypes.c_size_t(0)
        measured = cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) == 0
        gpus.append(
            Gpu(
                _text(name) if named else f"GPU {index}",
                _cuda_capability(cuda, device),
                total.value if measured else None,
            )
        )
    return tuple(gpus)


def _cuda_capability(cuda: Any, device: ctypes.c_int) -> str | None:
    """Ask for attributes 75 and 76: COMPUTE_CAPABILITY_MAJOR and _MINOR."""
    parts: list[str] = []
    for attribute in (75, 76):
        value = ctypes.c_int(0)
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), device) != 0:
            return None
        parts.append(str(value.value))
    return ".".join(parts)
