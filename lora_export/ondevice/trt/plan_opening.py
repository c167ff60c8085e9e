"""A plan checked against its record, then opened; one that does not match is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.device_files import read_errors, resolve_inside
from lora_export.ondevice.file_opening import read_file
from lora_export.ondevice.trt.api import Log, import_library
from lora_export.ondevice.trt.build_record import (
    read_record,
    require_device,
    require_files,
    require_plan,
)
from lora_export.ondevice.trt.compiled_context import CompiledContext, warn
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import library_of, library_row
from lora_export.ondevice.trt.plan_loading import deserialize
from lora_export.ondevice.trt.refit import LiveEngine, refit_stripped
from lora_export.ondevice.trt.runtime_cache import CacheKey, cache_file
from lora_export.ondevice.trt.trt_runner import TrtRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    import tensorrt as trt

    from lora_export.ondevice.trt.cuda import Cuda

    Array = np.ndarray[Any, Any]
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = ["checked_plan", "loaded_engine", "open_live", "open_plan"]


def checked_plan(
    root: Path, plan: str, sha256: Mapping[str, str], fingerprint: str, cuda: Cuda
) -> tuple[bytes, BuildRecord]:
    """Return a plan's bytes and its record, after all that can be compared was.

    Args:
        root: The export or the bundle.
        plan: The plan, relative to it.
        sha256: The SHA-256 of each file, as the manifest has it.
        fingerprint: That of the base.
        cuda: CUDA's functions.

    Raises:
        DeviceError: The plan or its record is missing, damaged, or of another graph, base, library,
            version or GPU; or TensorRT is missing.
    """
    path = resolve_inside(root, plan)
    record = read_record(path)
    module = import_library(record["library"])
    require_files(record, sha256, fingerprint)
    require_device(
        record,
        library=library_of(module),
        tensorrt=str(module.__version__),
        driver=cuda.versions()[0],
        gpu=cuda.gpu(),
    )
    require_plan(path, record)
    with read_errors(f"the plan {plan!r}"):
        return read_file(path, record["plan"]["bytes"]), record


def loaded_engine(
    root: Path,
    plan: bytes,
    record: BuildRecord,
    log: Log,
    tell: Callable[[str], None] | None = None,
) -> trt.ICudaEngine:
    """Return the engine of a checked plan; its weights come from the ONNX file if it has none."""
    settings = record["settings"]
    compatible = bool(settings.get("version_compatible"))
    engine = deserialize(plan, log, version_compatible=compatible, tell=tell)
    if settings.get("strip_weights"):
        (onnx,) = record["onnx"]
        refit_stripped(engine, resolve_inside(root, onnx), log)
    return engine


def open_plan(
    root: Path,
    plan: str,
    *,
    sha256: Mapping[str, str],
    fingerprint: str,
    cuda: Cuda | None = None,
    defaults: Mapping[str, Array] | None = None,
    cuda_graphs: bool = False,
    wait_for_kernels: bool = False,
    tell: Callable[[str], None] = warn,
) -> TrtRunner:
    """Return a runner of a plan, compiled for the GPU where its library does that.

    See `checked_plan`, `TrtRunner` and `CompiledContext` for arguments and errors.
    """
    device = cuda or open_cuda()
    data, record = checked_plan(root, plan, sha256, fingerprint, device)
    log = Log(import_library(record["library"]))
    engine = loaded_engine(root, data, record, log, tell)
    compiled = None
    if library_row(record["library"]).compiles_on_load:
        gpu = device.gpu()
        key = CacheKey(
            plan=record["plan"]["sha256"],
            library=record["library"],
            version=str(log.module.__version__),
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            driver=device.versions()[0],
        )
        compiled = CompiledContext(
            log.module,
            cache_file(resolve_inside(root, plan), gpu.name),
            key,
            cuda_graphs=cuda_graphs,
            wait_for_kernels=wait_for_kernels,
            tell=tell,
        )
    return TrtRunner(engine, device, defaults=defaults, cuda_graphs=cuda_graphs, compiled=compiled)


def open_live(
    root: Path,
    plan: str,
    *,
    sha256: Mapping[str, str],
    fingerprint: str,
    cuda: Cuda | None = None,
    cuda_graphs: bool = False,
) -> tuple[LiveEngine, BuildRecord]:
    """Return an engine whose weights can be swapped, and its record; see `open_plan`.

    Raises:
        DeviceError: None of its weights are refittable; or as `checked_plan`.
    """
    device = cuda or open_cuda()
    data, record = checked_plan(root, plan, sha256, fingerprint, device)
    settings = record["settings"]
    if not settings.get("refittable") or settings.get("strip_weights"):
        msg = f"the engine {record['graph']!r} was not built to be refitted"
        raise DeviceError(msg, hint="Build it with --refit.", kind="unsupported")
    compatible = bool(settings.get("version_compatible"))
    log = Log(import_library(record["library"]))
    live = LiveEngine(data, device, log, version_compatible=compatible, cuda_graphs=cuda_graphs)
    return live, record
