"""NVIDIA's management library, as far as a measurement asks it: clocks, energy, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NvmlDevice", "nvml_devices"]

_LIBRARY: Final = "libnvidia-ml.so.1"
_CLOCKS: Final = {"graphics": 0, "sm": 1, "memory": 2}
_MOST_PROCESSES: Final = 256


class _Process(ctypes.Structure):
    """``nvmlProcessInfo_t`` of NVML 11 and later."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class NvmlDevice:
    """One GPU; every question is answered with None where the driver does not answer."""

    def __init__(self, nvml: Any, handle: ctypes.c_void_p) -> None:
        self._nvml, self._handle = nvml, handle

    def clocks_mhz(self) -> dict[str, int]:
        """Return the current clocks by name, those that are told."""
        found: dict[str, int] = {}
        for name, kind in _CLOCKS.items():
            value = ctypes.c_uint(0)
            if self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(kind), ctypes.byref(value)):
                found[name] = value.value
        return found

    def energy_mj(self) -> int | None:
        """Return the energy since the driver was loaded, in millijoules (Volta and later)."""
        value = ctypes.c_ulonglong(0)
        told = self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(value))
        return value.value if told else None

    def used_by_this_process_bytes(self) -> int | None:
        """Return the memory that this process has on the GPU."""
        count = ctypes.c_uint(_MOST_PROCESSES)
        rows = (_Process * _MOST_PROCESSES)()
        name = "nvmlDeviceGetComputeRunningProcesses_v3"
        if not self._ask(name, ctypes.byref(count), rows):
            return None
        own = [row.used_bytes for row in rows[: count.value] if row.pid == os.getpid()]
        return own[0] if own else None  # absent in a container with its own numbers of processes

    def _ask(self, function: str, *arguments: Any) -> bool:
        try:
            answer: int = getattr(self._nvml, function)(self._handle, *arguments)
        except AttributeError:  # an older library
            return False
        return answer == 0


@contextlib.contextmanager
def nvml_devices() -> Iterator[list[NvmlDevice]]:
    """Yield the GPUs; none where there is no driver."""
    try:
        nvml: Any = ctypes.CDLL(_LIBRARY)
        ready = nvml.nvmlInit_v2() == 0
    except (OSError, AttributeError):
        ready = False
    if not ready:
        yield []
        return
    try:
        count = ctypes.c_uint(0)
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        devices: list[NvmlDevice] = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
                devices.append(NvmlDevice(nvml, handle))
        yield devices
    finally:
        nvml.nvmlShutdown()
