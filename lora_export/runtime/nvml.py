"""NVIDIA's management library through ``nvidia-ml-py``: names, memory, clocks, energy.

The package is optional (the extra ``nvml``). Every question is answered with None
where it is not installed, where there is no driver, or where the driver does not answer.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NvmlDevice", "driver_version", "nvml_devices"]

_CLOCKS: Final = {"graphics": 0, "sm": 1, "memory": 2}
"""``nvmlClockType_t``."""


class NvmlDevice:
    """One GPU."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def name(self) -> str | None:
        """Return the product name."""
        found = self._ask("nvmlDeviceGetName")
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else found

    def memory_bytes(self) -> int | None:
        """Return the size of its memory."""
        found = self._ask("nvmlDeviceGetMemoryInfo")
        return None if found is None else int(found.total)

    def compute_capability(self) -> str | None:
        """Return the compute capability, such as ``8.7``."""
        found = self._ask("nvmlDeviceGetCudaComputeCapability")
        return None if found is None else f"{found[0]}.{found[1]}"

    def clocks_mhz(self) -> dict[str, int]:
        """Return the current clocks by name, as far as the driver reports them."""
        found = {name: self._ask("nvmlDeviceGetClockInfo", kind) for name, kind in _CLOCKS.items()}
        return {name: value for name, value in found.items() if value is not None}

    def energy_mj(self) -> int | None:
        """Return the energy since the driver was loaded, in millijoules (Volta and later)."""
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else int(found)

    def used_by_this_process_bytes(self) -> int | None:
        """Return the memory that this process has on the GPU."""
        rows = self._ask("nvmlDeviceGetComputeRunningProcesses") or ()
        own = [row.usedGpuMemory for row in rows if row.pid == os.getpid()]
        return own[0] if own else None  # absent in a container with its own numbers of processes

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (AttributeError, self._nvml.NVMLError):  # an older library or GPU
            return None


@contextlib.contextmanager
def nvml_devices() -> Iterator[list[NvmlDevice]]:
    """Yield the GPUs; none where ``nvidia-ml-py`` or the driver is missing."""
    nvml = _initialized()
    if nvml is None:
        yield []
        return
    try:
        yield list(_devices(nvml))
    finally:
        nvml.nvmlShutdown()


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver."""
    nvml = _initialized()
    if nvml is None:
        return None
    try:
        found = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
    return found.decode() if isinstance(found, bytes) else str(found)


def _initialized() -> Any:
    """Return the library, initialized; None where it cannot be."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _devices(nvml: Any) -> Iterator[NvmlDevice]:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return
    for index in range(count):
        with contextlib.suppress(nvml.NVMLError):
            yield NvmlDevice(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
