"""The build record of a plan as a table: the types of what `build_record` reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BuildDetails",
    "BuildPlace",
    "BuildRecord",
    "CudaTable",
    "GpuTable",
    "PlanTable",
    "RefitTable",
    "RefittedTable",
    "TensorTable",
]


class CudaTable(TypedDict):
    """The versions of CUDA that the driver supports, and that of the runtime."""

    driver: str
    runtime: str


class GpuTable(TypedDict):
    """The device that a plan was built on."""

    name: str
    compute_capability: str
    memory_bytes: int


class PlanTable(TypedDict):
    """The plan itself."""

    file: str
    sha256: str
    bytes: int


class TensorTable(TypedDict):
    """An input or output; -1 is an axis of any size."""

    dtype: str
    shape: list[int]


class RefitTable(TypedDict, total=False):
    """The source of a refittable weight; see `lora_export.core.engine_record.RefitRow`."""

    parameters: list[str]
    transform: list[str]
    dtype: str
    shape: list[int]
    file: str
    neighbour: bool


class RefittedTable(TypedDict):
    """The sources of a refitted plan."""

    adapter: str
    adapter_sha256: str
    plan: str
    plan_sha256: str
    supplied: list[str]


class _Built(TypedDict):
    flags: list[str]
    tool: str
    command: list[str] | None
    inputs: dict[str, TensorTable]
    outputs: dict[str, TensorTable]
    seconds: float
    peak_device_bytes: int


class BuildDetails(_Built, total=False):
    """The part of a record that depends on the way in which the plan was made."""

    refit: dict[str, RefitTable]
    adapter: RefittedTable | None


class BuildPlace(TypedDict):
    """The place where a plan was built, and the compute capabilities that it is for."""

    built_on: str
    capabilities: list[str]
    cuda: CudaTable | None
    gpu: GpuTable | None


class BuildRecord(_Built, BuildPlace):
    """The whole record; see `lora_export.core.engine_record.EngineRecord`."""

    format_version: int
    graph: str
    target: str
    library: str
    tensorrt: str
    precision: str
    settings: Mapping[str, Any]
    onnx: dict[str, str]
    weights: dict[str, str]
    base_fingerprint: str
    plan: PlanTable
    refit: dict[str, RefitTable]
    adapter: RefittedTable | None
    peak_host_bytes: int
