"""The machine on which ``reports/bench.json`` was measured, and the class of such machines.

What cannot be found out is null. Nothing names the host.
"""

from __future__ import annotations

from pydantic import Field

from lora_export.core.reports.report_model import ReportModel

__all__ = ["CpuRow", "GpuRow", "MachineClass", "MachineReport"]


class CpuRow(ReportModel):
    """The processor.

    Attributes:
        model: Its name.
        architecture: ``x86_64``, ``aarch64``.
        count: How many processors the machine has.
        usable: How many of them the process may use.
        clock_mhz: The clock of the first, before the measurement.
        max_clock_mhz: Its largest clock.
        governor: The governor of its clock.
    """

    model: str | None = None
    architecture: str | None = None
    count: int | None = None
    usable: int | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    governor: str | None = None


class GpuRow(ReportModel):
    """A GPU.

    Attributes:
        name: Its name.
        compute_capability: Its compute capability, ``8.7``.
        memory_bytes: Its memory.
        clocks_mhz: Its clocks by name; null without NVML.
    """

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None
    clocks_mhz: dict[str, int] | None = None


class MachineReport(ReportModel):
    """The machine and its software.

    Attributes:
        cpu: The processor.
        memory_bytes: The machine's memory.
        gpus: Its GPUs.
        driver: The version of NVIDIA's driver.
        jetson: The board and the release of a Jetson.
        os: The name and version of the operating system.
        kernel: The version of its kernel.
        python: The version of Python.
        packages: The versions of the packages on which the figures depend.
        threads: Threads within an operator, as they were asked for; 0 is the runtime's choice.
        load_average: The load of the last 1, 5 and 15 minutes.
    """

    cpu: CpuRow = CpuRow()
    memory_bytes: int | None = None
    gpus: list[GpuRow] = Field(default_factory=list)
    driver: str | None = None
    jetson: str | None = None
    os: str | None = None
    kernel: str | None = None
    python: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    threads: int = 0
    load_average: list[float] = Field(default_factory=list)


class MachineClass(ReportModel):
    """The properties that two machines must share for their ratios to be comparable.

    Attributes:
        cpu: The name of the processor.
        architecture: Its architecture.
        processors: How many of them a process may use.
        gpus: The names of the GPUs.
        jetson: The board and the release of a Jetson.
        threads: Threads within an operator.
    """

    cpu: str | None = None
    architecture: str | None = None
    processors: int | None = None
    gpus: list[str] = Field(default_factory=list)
    jetson: str | None = None
    threads: int | None = None
