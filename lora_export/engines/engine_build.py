"""Engines of an export: planned, built, and listed in the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside, sha256_of_file
from lora_export.core.manifest import edit_manifest, write_manifest
from lora_export.core.targets import require_tensorrt_target
from lora_export.engines.ahead_of_time import require_memory
from lora_export.engines.trtexec import build_with_trtexec, find_trtexec, trtexec_line
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.printable import shell_command
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.build_record import plan_file, record_file, timing_file
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.engine_builder import build
from lora_export.ondevice.trt.libraries import TENSORRT_RTX, library_row, library_title
from lora_export.ondevice.trt.versions import parse_version, release, require_level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.progress import Progress
    from lora_export.ondevice.trt.cuda import Gpu
    from lora_export.ondevice.trt.engine_builder import BuildJob
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = [
    "PlannedEngine",
    "build_engines",
    "describe_build",
    "engine_documents",
    "register_engine_files",
]


class PlannedEngine(TypedDict):
    """A build that was not made: its command line, and what the builder would be told.

    Attributes:
        rewritten: Whether the graph is rewritten before it is parsed.
        trtexec: The command line; None where ``trtexec`` cannot build it.
    """

    graph: str
    target: str
    library: str
    tensorrt: str
    onnx: str
    rewritten: bool
    plan: str
    trtexec: str | None
    flags: list[str]
    settings: Mapping[str, Any]


def build_engines(
    export_dir: Path, jobs: Sequence[BuildJob], *, trtexec: bool = False, progress: Progress
) -> list[BuildRecord]:
    """Build engines; return their build records. Each is in the manifest when it is done.

    Args:
        export_dir: The export.
        jobs: What is built; see `lora_export.engines.jobs.jobs_of`.
        trtexec: Whether ``trtexec`` builds instead of Python's API.
        progress: Told what happens.

    Raises:
        UnsupportedError: This machine is not the target, or an option is none of it.
        LoraExportError: TensorRT or a device is missing, a file is not what the manifest says, a
            graph or a profile is refused, the build fails, or the disk refuses. Engines that were
            finished before stay.
    """
    for library in {job.library for job in jobs}:
        if not trtexec:
            import_library(library)
        elif library == TENSORRT_RTX:
            msg = f"trtexec is a tool of TensorRT, and the engines are {library_title(library)}'s"
            raise UsageError(msg, hint="Leave --trtexec out.")
    if trtexec:
        find_trtexec()
        for job in (each for each in jobs if each.needs_edits):
            msg = f"trtexec cannot build {job.onnx!r}, whose embeddings are looked up as int8"
            hint = "Leave --trtexec out, or export with quantize: {embeddings: keep} in a recipe."
            raise UnsupportedError(msg, hint=hint)
    if on_device := [job for job in jobs if not library_row(job.library).builds_ahead]:
        gpu = open_cuda().gpu()
        for job in on_device:
            require_present(job.target, gpu)
            _require_portable(job)
    records = []
    for job in jobs:
        if library_row(job.library).builds_ahead:
            require_memory(job.model or read_graph(resolve_inside(export_dir, job.onnx)), job.onnx)
        progress.start(f"building the engine {job.graph} for {job.target}")
        record = build_with_trtexec(job) if trtexec else build(job, tell=progress.start)
        register_engine_files(export_dir, record)
        records.append(record)
    return records


def require_present(target: str, gpu: Gpu) -> None:
    """Require that a target is the device that is here: an engine is built where it runs.

    Raises:
        UnsupportedError: It is another.
    """
    wanted = require_tensorrt_target(target).compute_capability
    found = tuple(int(part) for part in gpu.compute_capability.split("."))
    if wanted is not None and wanted != found:
        msg = (
            f"the target {target!r} has compute capability {'.'.join(map(str, wanted))}, "
            f"this is {gpu.name} with {gpu.compute_capability}"
        )
        hint = f"Build it there: lora-export bundle OUT --target {target} packs what it takes."
        raise UnsupportedError(msg, hint=hint)


def _require_portable(job: BuildJob) -> None:
    """Refuse a plan for other GPUs where TensorRT makes none.

    Raises:
        UnsupportedError: It is asked for.
    """
    level = job.settings.hardware_compatibility
    if level != "none" and require_tensorrt_target(job.target).bound_plans:
        msg = (
            f"TensorRT makes no plans for other GPUs on {job.target!r}: {level!r} is not available"
        )
        raise UnsupportedError(
            msg, hint="Leave --hardware-compatible out, and build on each device."
        )


def register_engine_files(
    export_dir: Path, record: BuildRecord, *, timing_cache: bool = True
) -> None:
    """Name a plan and its record in the manifest, with their hashes.

    Args:
        export_dir: The export.
        record: The record of the engine.
        timing_cache: Whether the timing cache is one of the files; a refit leaves it as it is.
    """
    plan = record["plan"]["file"]
    timing = timing_file(record["target"], record["tensorrt"], record["library"])
    files = [plan, record_file(plan), *([timing] if timing_cache else [])]
    with edit_manifest(export_dir) as manifest:
        paths = {file: resolve_inside(export_dir, file) for file in files}
        hashes = {file: sha256_of_file(path) for file, path in paths.items() if path.is_file()}
        listed = manifest.model_copy(update={"files": {**manifest.files, **hashes}})
        write_manifest(export_dir, listed)


def describe_build(job: BuildJob, version: str) -> PlannedEngine:
    """Return a description of a build, without TensorRT: its command line and settings.

    Args:
        job: What would be built.
        version: The version of TensorRT that it would be built by.

    Raises:
        DeviceError: The version lacks something that is asked for.
        UnsupportedError: The target does.
    """
    ahead = library_row(job.library).builds_ahead
    if not ahead:
        _require_portable(job)
        require_level(parse_version(version), job.settings.hardware_compatibility)
    plan = plan_file(job.graph, job.target, version, job.library)
    line = None
    if not job.settings.refittable and not ahead and not job.needs_edits:
        rewritten = job.onnx if job.model is None else f".lora-export-{job.graph}.required.onnx"
        timing = timing_file(job.target, version)
        line = trtexec_line(job, version, onnx=rewritten, plan=plan, timing_cache=timing)
    return {
        "graph": job.graph,
        "target": job.target,
        "library": job.library,
        "tensorrt": version,
        "onnx": job.onnx,
        "rewritten": job.model is not None,
        "plan": plan,
        "trtexec": None if line is None else shell_command(line),
        "flags": _flags(job),
        "settings": job.settings.to_json(),
    }


def _flags(job: BuildJob) -> list[str]:
    """Return the builder's flags, ``-`` before one that is cleared."""
    settings = job.settings
    table = {
        "STRONGLY_TYPED": True,
        "-TF32": not settings.tf32,
        "VERSION_COMPATIBLE": settings.version_compatible,
        "STRIP_PLAN": settings.strip_weights,
        "REFIT_INDIVIDUAL": bool(settings.refittable),
        "REFIT_IDENTICAL": settings.strip_weights and not settings.refittable,
    }
    return [flag for flag, wanted in table.items() if wanted]


def engine_documents(jobs: Sequence[BuildJob], version: str | None) -> list[PlannedEngine]:
    """Return `describe_build` for each job, for a version or the oldest of the target."""
    return [describe_build(job, version or _oldest(job)) for job in jobs]


def _oldest(job: BuildJob) -> str:
    """Return the oldest version that builds a job."""
    if library_row(job.library).builds_ahead:
        return release(library_row(job.library).oldest)
    return require_tensorrt_target(job.target).tensorrt[0]
