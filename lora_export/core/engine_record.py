"""The build record beside every plan, as validated values.

    engines/<graph>.<target>.trt<version>.plan      of TensorRT
    engines/<graph>.<target>.rtx<version>.plan      of TensorRT for RTX
    engines/<graph>.<target>.<...>.json             this record; without it the plan is not used

A device writes and reads the same JSON with the standard library:
`lora_export.ondevice.trt.build_record`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.record_values import Sha256
from lora_export.ondevice.trt.build_record import read_record

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EngineRecord", "RefitRow", "read_engine_record"]


Capability = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
"""A compute capability: ``8.7``."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class CudaRecord(_Record):
    """The versions of CUDA that the driver supports, and that of the runtime."""

    driver: str
    runtime: str


class GpuRecord(_Record):
    """The device that a plan was built on."""

    name: str
    compute_capability: Capability
    memory_bytes: int = Field(ge=0)


class PlanRecord(_Record):
    """The plan itself."""

    file: str
    sha256: Sha256
    bytes: int = Field(ge=0)


class TensorRecord(_Record):
    """An input or output; -1 is an axis of any size."""

    dtype: str
    shape: list[int]


class RefitRow(_Record):
    """The source of a refittable weight of an engine in the checkpoint.

    The weight has the initializer's name and its layout in the graph, which is the layout that the
    engine takes: what it takes to get there from the checkpoint is `transform`.

    Attributes:
        parameters: The parameters of the checkpoint that it is made of.
        transform: What the graph stores: ``transpose``, ``cast``.
        dtype: Its dtype.
        shape: Its shape in the graph.
        file: The weight file that has the base's value.
        neighbour: Whether it is only supplied because TensorRT fused it with a changed one.
    """

    parameters: list[str]
    transform: list[str]
    dtype: str
    shape: list[int]
    file: str
    neighbour: bool = False


class RefittedRecord(_Record):
    """The sources of a refitted plan."""

    adapter: str
    adapter_sha256: Sha256
    plan: str
    plan_sha256: Sha256
    supplied: list[str]


class EngineRecord(_Record):
    """The whole record.

    Attributes:
        graph: The stem of the ONNX file.
        library: The library that built the plan (``tensorrt``); see
            `lora_export.ondevice.trt.libraries`.
        tensorrt: Its version.
        built_on: ``device``: on the GPU that the plan is for; ``host``: ahead of time, elsewhere.
        cuda: The versions of CUDA there; None where it was built ahead of time.
        gpu: The device that it was built on; None where it was built ahead of time.
        capabilities: The compute capabilities that the plan was built for.
        settings: What the builder was told; see
            `lora_export.ondevice.trt.build_settings.BuildSettings`.
        flags: The flags that the builder had.
        onnx: The SHA-256 of the ONNX file, by its path in the export.
        weights: That of each weight file.
        seconds: How long the build took.
        peak_device_bytes: The most that was taken of the device's memory, at any step of it.
        peak_host_bytes: The largest resident memory of the process; 0 where that is not known.
        adapter: What a refit made it from; None for what was built.
    """

    format_version: Literal[2]
    graph: str
    target: str
    library: str
    tensorrt: str
    built_on: Literal["host", "device"]
    cuda: CudaRecord | None
    gpu: GpuRecord | None
    capabilities: list[Capability] = Field(min_length=1)
    precision: str
    settings: dict[str, JsonValue]
    flags: list[str]
    tool: Literal["api", "trtexec", "refit"]
    command: list[str] | None
    onnx: dict[str, Sha256]
    weights: dict[str, Sha256]
    base_fingerprint: Sha256
    plan: PlanRecord
    inputs: dict[str, TensorRecord]
    outputs: dict[str, TensorRecord]
    refit: dict[str, RefitRow]
    adapter: RefittedRecord | None
    seconds: float
    peak_device_bytes: int
    peak_host_bytes: int


def read_engine_record(plan: Path) -> EngineRecord:
    """Return the record beside a plan; one of version 1 as version 2 has it.

    Raises:
        LoraExportError: There is none, it is damaged, or of a newer version.
    """
    table = read_record(plan)
    try:
        return EngineRecord.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        msg = f"the build record of {str(plan)!r} is damaged: {where}: {first['msg']}"
        raise ExportDirectoryError(msg, hint="Build the engine again.") from error
