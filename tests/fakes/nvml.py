"""``pynvml`` as far as it is used: GPUs that answer without a driver."""

from __future__ import annotations

from dataclasses import dataclass


class NVMLError(Exception):
    """Raised for what a GPU does not report."""


@dataclass
class Memory:
    """``nvmlMemory_t``."""

    total: int


class FakeNvml:
    """Two GPUs of compute capability 8.7; the second one has no energy counter."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2) -> None:
        self.count, self.energy, self.ended = count, 1000, 0

    def nvmlInit(self) -> None:  # noqa: N802  (NVML's names)
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.ended += 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index + 1

    def nvmlDeviceGetName(self, device: int) -> bytes:  # noqa: N802
        return b"NVIDIA Fake"

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Memory:  # noqa: N802
        return Memory(1000 * device)

    def nvmlDeviceGetCudaComputeCapability(self, device: int) -> tuple[int, int]:  # noqa: N802
        return 8, 7

    def nvmlDeviceGetClockInfo(self, device: int, kind: int) -> int:  # noqa: N802
        if kind == 1:
            raise NVMLError
        return 1000 * device + kind

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:  # noqa: N802
        if device > 1:
            raise NVMLError
        self.energy += 500
        return self.energy
