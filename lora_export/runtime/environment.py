"""The environment of a measurement: processor, clocks, GPUs, versions; no host name."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Final

from lora_export.core.cgroups import read_text
from lora_export.core.reports.machine_report import CpuRow, GpuRow, MachineClass, MachineReport
from lora_export.runtime.machine import probe_machine
from lora_export.runtime.nvml import nvml_devices

__all__ = ["cpu_model", "describe_environment", "machine_class", "os_name", "versions_of"]

_PACKAGES: Final = (
    "lora-export", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch", "transformers", "peft",
    "numpy", "onnx",
)  # fmt: skip
_CPUFREQ: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_CPUINFO: Final = Path("/proc/cpuinfo")
_KHZ_PER_MHZ: Final = 1000


def describe_environment(threads: int = 0) -> MachineReport:
    """Return the machine and its software; what cannot be found out is None.

    Args:
        threads: Threads within an operator, as they were asked for; 0 is the runtime's choice.
    """
    machine = probe_machine()
    return MachineReport(
        cpu=CpuRow(
            model=cpu_model(),
            architecture=platform.machine(),
            count=machine.cpus,
            usable=machine.cpus_usable,
            clock_mhz=_cpu_clock_mhz(),
            max_clock_mhz=_khz(_CPUFREQ / "cpuinfo_max_freq"),
            governor=(read_text(_CPUFREQ / "scaling_governor") or "").strip() or None,
        ),
        memory_bytes=machine.memory_bytes,
        gpus=[
            GpuRow(
                name=gpu.name,
                compute_capability=gpu.compute_capability,
                memory_bytes=gpu.memory_bytes,
                clocks_mhz=clocks,
            )
            for gpu, clocks in zip(machine.gpus, _gpu_clocks(len(machine.gpus)), strict=True)
        ],
        driver=machine.driver,
        jetson=machine.jetson,
        os=os_name(),
        kernel=platform.release().partition("-")[0],
        python=platform.python_version(),
        packages=versions_of(_PACKAGES),
        threads=threads,
        load_average=[round(each, 2) for each in os.getloadavg()],
    )


def machine_class(environment: MachineReport) -> MachineClass:
    """Return the properties that two machines must share for their ratios to be comparable."""
    return MachineClass(
        cpu=environment.cpu.model,
        architecture=environment.cpu.architecture,
        processors=environment.cpu.usable,
        gpus=[gpu.name for gpu in environment.gpus],
        jetson=environment.jetson,
        threads=environment.threads,
    )


def cpu_model() -> str | None:
    """Return the processor's name as the kernel has it; of an ARM one, which has none, the numbers.

    A machine with several kinds of cores has the numbers of each.
    """
    return _cpuinfo("model name") or _arm_model() or platform.processor() or None


def _arm_model() -> str | None:
    """Return implementer and part of each kind of core (the register MIDR_EL1)."""
    kinds = zip(_all_of("CPU implementer"), _all_of("CPU part"), strict=False)
    return ", ".join(f"implementer {one} part {other}" for one, other in sorted(set(kinds))) or None


def os_name() -> str:
    """Return the name and version of the system."""
    with contextlib.suppress(OSError, KeyError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cpuinfo(field: str) -> str | None:
    return next(iter(_all_of(field)), None)


def _all_of(field: str) -> list[str]:
    """Return a field of ``/proc/cpuinfo`` of every processor that has it."""
    rows = (line.partition(":") for line in (read_text(_CPUINFO) or "").splitlines())
    return [value.strip() for key, _, value in rows if key.strip() == field]


def _cpu_clock_mhz() -> float | None:
    """Return the first processor's clock: of cpufreq, else what ``/proc/cpuinfo`` says."""
    measured = _khz(_CPUFREQ / "scaling_cur_freq")
    if measured is not None:
        return measured
    told = _cpuinfo("cpu MHz")
    with contextlib.suppress(ValueError):
        return float(told) if told is not None else None
    return None


def _khz(path: Path) -> float | None:
    text = (read_text(path) or "").strip()
    return int(text) / _KHZ_PER_MHZ if text.isdigit() else None


def _gpu_clocks(count: int) -> list[dict[str, int] | None]:
    with nvml_devices() as devices:
        clocks: list[dict[str, int] | None] = [each.clocks_mhz() for each in devices[:count]]
    return clocks + [None] * (count - len(clocks))
