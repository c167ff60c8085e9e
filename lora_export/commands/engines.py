"""TensorRT engines of an export: built on the device that they are for, and refitted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.core import targets
from lora_export.core.errors import AdapterError, InputError, UnsupportedError, UsageError
from lora_export.core.manifest import edit_manifest, read_manifest
from lora_export.core.progress import Progress, Silent
from lora_export.engines.engine_build import build_engines, engine_documents, register_engine_files
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.jobs import graphs_to_build, jobs_of
from lora_export.engines.refit_values import refit_plan
from lora_export.exports.integrity_checks import require_usable
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.ondevice.trt.versions import parse_version
from lora_export.verification.refit_check import refit_check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.engines.engine_build import PlannedEngine
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = ["build", "plan_build", "refit"]


def build(
    export_dir: Path,
    target: str,
    *,
    graphs: Sequence[str] = (),
    options: EngineOptions | None = None,
    trtexec: bool = False,
    progress: Progress | None = None,
) -> list[BuildRecord]:
    """Build engines of an export; return their build records.

    Args:
        export_dir: The export.
        target: The device. TensorRT builds on the device itself, and ``auto`` is whatever this
            one is; TensorRT for RTX builds anywhere.
        graphs: Names of graphs; those that serve adapters by default.
        options: How they are built.
        trtexec: Whether ``trtexec`` builds instead of Python's API.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; an engine is there whole, or not at all.
    """
    chosen = options or EngineOptions()
    targets.require_engine_target(target, rtx=chosen.library == TENSORRT_RTX)
    with edit_manifest(export_dir) as manifest:  # that it can be changed is known before the build
        require_usable(export_dir, manifest)
    names = graphs_to_build(manifest, graphs, refit=chosen.refit)
    jobs = jobs_of(export_dir, manifest, target, names, chosen)
    if target == targets.AUTO:
        own = _present_target()
        jobs = [replace(job, target=own) for job in jobs]
    return build_engines(export_dir, jobs, trtexec=trtexec, progress=progress or Silent())


def _present_target() -> str:
    gpu = open_cuda().gpu()
    major, _, minor = gpu.compute_capability.partition(".")
    found = targets.target_of_device((int(major), int(minor)), gpu.name)
    return targets.AUTO if found is None else found.name


def plan_build(
    export_dir: Path,
    target: str,
    *,
    graphs: Sequence[str] = (),
    options: EngineOptions | None = None,
    tensorrt: str | None = None,
) -> list[PlannedEngine]:
    """Return the plan of `build`, without TensorRT; see `engines.engine_build.describe_build`.

    Args:
        export_dir: The export.
        target: The device.
        graphs: Names of graphs; those that serve adapters by default.
        options: How they would be built.
        tensorrt: The version that would build; the oldest of the target by default.

    Raises:
        LoraExportError: See the class of the error.
    """
    chosen = options or EngineOptions()
    targets.require_engine_target(target, rtx=chosen.library == TENSORRT_RTX)
    if tensorrt is not None:
        try:
            parse_version(tensorrt, chosen.library)
        except DeviceError as error:
            if error.exit_code != InputError.exit_code:
                raise
            raise UsageError(error.message, hint="Give it as: --tensorrt 10.3") from error
    manifest = read_manifest(export_dir)
    names = graphs_to_build(manifest, graphs, refit=chosen.refit)
    return engine_documents(jobs_of(export_dir, manifest, target, names, chosen), tensorrt)


def refit(
    export_dir: Path,
    target: str,
    name: str,
    *,
    source: AdapterSpec | None = None,
    progress: Progress | None = None,
) -> BuildRecord:
    """Write the plan of an adapter from the base's refittable engine; return its record.

    Args:
        export_dir: The export.
        target: The device; ``auto`` is whatever this one is.
        name: The adapter; the engine is called so.
        source: Where it is, where it is not the export's own.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; nothing is written then.
    """
    tell = progress or Silent()
    targets.require_tensorrt_target(target)
    with edit_manifest(export_dir) as manifest:
        require_usable(export_dir, manifest)
    if source is None and name not in manifest.adapters:
        msg = f"the export has no adapter {name!r}"
        known = ", ".join(manifest.adapters) or "none"
        raise AdapterError(msg, hint=f"It has: {known}. Another one: --adapter NAME=PATH.")
    if source is not None and name in manifest.graphs:
        msg = f"the export has a graph {name!r} of its own"
        raise UnsupportedError(msg, hint="Give the adapter another name: --adapter NAME=PATH.")
    tell.start(f"refitting {name}")
    device = _present_target() if target == targets.AUTO else target
    check = refit_check(export_dir, manifest, name, tell.note) if source is None else None
    record = refit_plan(export_dir, manifest, device, name, source=source, check=check)
    if check is None:
        tell.note(f"note: the refitted engine was not compared: no golden outputs of {name!r}")
    register_engine_files(export_dir, record, timing_cache=False)
    return record
