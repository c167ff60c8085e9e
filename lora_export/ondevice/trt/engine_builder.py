"""An engine from an ONNX file: the network is strongly typed, its precision is the graph's.

    parse → profiles, flags, timing cache → build → plan, timing cache, record

The plan, the timing cache and the record are each complete or absent; the record is written last.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.device_files import (
    atomic_write_bytes,
    read_errors,
    resolve_inside,
    sha256_of_file,
    storage_errors,
)
from lora_export.ondevice.external_data import graph_bytes, read_graph
from lora_export.ondevice.trt.api import Log, import_tensorrt, numpy_dtype, version_of
from lora_export.ondevice.trt.build_record import (
    FORMAT_VERSION,
    plan_file,
    record_file,
    timing_file,
    write_record,
)
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import library_of
from lora_export.ondevice.trt.monitor import watch
from lora_export.ondevice.trt.plan_loading import deserialize
from lora_export.ondevice.trt.record_table import RefitTable
from lora_export.ondevice.trt.refit import neighbours
from lora_export.ondevice.trt.timing_cache import keep_timing_cache, use_timing_cache
from lora_export.ondevice.trt.versions import HARDWARE_LEVELS, has, require_level

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import tensorrt as trt

    from lora_export.ondevice.trt.build_settings import BuildSettings, Profile
    from lora_export.ondevice.trt.cuda import Cuda
    from lora_export.ondevice.trt.record_table import BuildDetails, BuildRecord, TensorTable

    Tell = Callable[[str], None]

__all__ = ["BuildJob", "build", "publish", "require_sources"]

_KIBIBYTE: Final = 1024


@dataclass(frozen=True)
class BuildJob:
    """One engine to build.

    Attributes:
        root: The export or the bundle; paths are relative to it.
        graph: What the engine is called: the stem of the ONNX file.
        target: The device that it is for, as the user names it.
        onnx: The ONNX file; its weights lie beside it.
        weights: The weight files that it reads.
        sha256: What the manifest says of these files.
        base_fingerprint: That of the base.
        settings: How it is built.
        refit: What is known of each weight of the graph; recorded of the refittable ones.
        model: The bytes to parse in place of the file's, where the graph had to be rewritten.
    """

    root: Path
    graph: str
    target: str
    onnx: str
    weights: tuple[str, ...]
    sha256: Mapping[str, str] = field(repr=False)
    base_fingerprint: str
    settings: BuildSettings
    refit: Mapping[str, RefitTable] = field(default_factory=dict, repr=False)
    model: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Built:
    """A built plan, and the facts for its record."""

    plan: Any = field(repr=False)
    flags: list[str]
    inputs: dict[str, TensorTable]
    outputs: dict[str, TensorTable]
    peak_device_bytes: int


def build(job: BuildJob, *, cuda: Cuda | None = None, tell: Tell | None = None) -> BuildRecord:
    """Build an engine, and write it below ``engines/``; return its record.

    Raises:
        DeviceError: TensorRT or CUDA is missing, the graph is not supported, a profile does not
            fit, a file is not what the manifest says, the build failed, or the disk refuses.
    """
    module = import_tensorrt()
    device = cuda or open_cuda()
    say = tell or _silent
    require_sources(job)
    version = str(module.__version__)
    started = time.monotonic()
    built = _build(job, device, resolve_inside(job.root, timing_file(job.target, version)), say)
    seconds = time.monotonic() - started
    say(f"writing {plan_file(job.graph, job.target, version)}")
    return publish(
        job,
        built.plan,
        library=library_of(module),
        tensorrt=version,
        cuda=device,
        details={
            "flags": built.flags,
            "tool": "api",
            "command": None,
            "inputs": built.inputs,
            "outputs": built.outputs,
            "refit": _refit_rows(job, built.plan),
            "seconds": round(seconds, 3),
            "peak_device_bytes": built.peak_device_bytes,
        },
    )


def _refit_rows(job: BuildJob, plan: Any) -> dict[str, RefitTable]:
    """Return the rows of the weights that a refit sets: those marked, and their neighbours."""
    names = job.settings.refittable
    if not names:
        return {}
    log = Log()
    compatible = job.settings.version_compatible
    engine = deserialize(plan, log, version_compatible=compatible)
    further = neighbours(engine, names, log)
    return {
        name: {**job.refit.get(name, RefitTable()), "neighbour": name in further}
        for name in (*names, *further)
    }


def _silent(text: str) -> None:
    del text


def require_sources(job: BuildJob) -> None:
    """Require that the graph and its weights are what the manifest says, byte for byte.

    Raises:
        DeviceError: A file is missing or differs.
        ExportDirectoryError: The graph names a file outside its folder.
    """
    for file in (job.onnx, *job.weights):
        with read_errors(repr(str(job.root / file))):
            found = sha256_of_file(resolve_inside(job.root, file))
        if found != job.sha256.get(file):
            msg = f"{file!r} is not what the manifest says: another SHA-256"
            raise DeviceError(msg, hint="Copy it again, or export again.", kind="input")
    read_graph(resolve_inside(job.root, job.onnx))  # TensorRT opens what the graph names


def publish(
    job: BuildJob,
    plan: Any,
    *,
    library: str,
    tensorrt: str,
    cuda: Cuda,
    details: BuildDetails,
) -> BuildRecord:
    """Write a plan and its record; return the record.

    Args:
        job: What was built.
        plan: The plan's bytes.
        library: The library that built it.
        tensorrt: Its version.
        cuda: Where it was built.
        details: The rest of the record.

    Raises:
        DeviceError: The disk refuses; there is no plan with a record then.
    """
    file = plan_file(job.graph, job.target, tensorrt)
    path, record_path = resolve_inside(job.root, file), resolve_inside(job.root, record_file(file))
    with storage_errors(str(record_path)):
        record_path.unlink(missing_ok=True)  # from here on nobody trusts an old plan
    data = memoryview(plan)
    digest = atomic_write_bytes(path, data)
    driver, runtime = cuda.versions()
    gpu = cuda.gpu()
    record: BuildRecord = {
        "format_version": FORMAT_VERSION,
        "graph": job.graph,
        "target": job.target,
        "library": library,
        "tensorrt": tensorrt,
        "built_on": "device",
        "capabilities": [gpu.compute_capability],
        "cuda": {"driver": driver, "runtime": runtime},
        "gpu": {
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "memory_bytes": gpu.memory_bytes,
        },
        "precision": job.settings.precision,
        "settings": job.settings.to_json(),
        "onnx": {job.onnx: job.sha256[job.onnx]},
        "weights": {each: job.sha256[each] for each in job.weights},
        "base_fingerprint": job.base_fingerprint,
        "plan": {"file": file, "sha256": digest, "bytes": data.nbytes},
        "refit": {},
        "adapter": None,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE,
        **details,
    }
    write_record(record_path, record)
    return record


def _build(job: BuildJob, cuda: Cuda, timing: Path, say: Tell) -> _Built:
    """Parse and build; nothing but the timing cache is written."""
    import tensorrt as trt

    log = Log()
    try:
        builder = trt.Builder(log.logger)
    except (RuntimeError, TypeError) as error:  # the binding's factory returned nothing
        msg = f"TensorRT does not start: {log.last()}"
        hint = "Does its version fit the driver's CUDA? See: lora-export doctor"
        raise DeviceError(msg, hint=hint, kind="missing") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    path = resolve_inside(job.root, job.onnx)
    say(f"parsing {job.onnx}")
    model = graph_bytes(path) if job.model is None else job.model
    if not parser.parse(model, str(path)):
        raise _parser_error(job, parser, log)
    config = builder.create_builder_config()
    _add_profiles(builder, network, config, job)
    flags = _set_flags(network, config, job.settings)
    cached = use_timing_cache(config, timing)
    say(f"building for {job.target}{' with a timing cache' if cached else ''}")
    with watch(config, cuda, say) as seen:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        msg = f"TensorRT could not build {job.onnx!r}: {log.last()}"
        raise DeviceError(msg, hint="Smaller profiles or a smaller --workspace need less memory.")
    keep_timing_cache(config, timing)
    return _Built(
        plan,
        flags,
        dict(_described(network.get_input(i)) for i in range(network.num_inputs)),
        dict(_described(network.get_output(i)) for i in range(network.num_outputs)),
        seen.peak_device_bytes,
    )


def _parser_error(job: BuildJob, parser: trt.OnnxParser, log: Log) -> DeviceError:
    """Return the parser's error, with the node's name and operator."""
    if parser.num_errors == 0:
        return DeviceError(f"TensorRT cannot parse {job.onnx!r}: {log.last()}", kind="unsupported")
    error = parser.get_error(0)
    msg = (
        f"TensorRT cannot parse {job.onnx!r}: node {error.node_name()!r} "
        f"({error.node_operator()}): {error.desc()}"
    )
    hint = f"See all of it with: lora-export preflight OUT --target {job.target}"
    return DeviceError(msg, hint=hint, kind="unsupported")


def _add_profiles(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, job: BuildJob
) -> None:
    """Add the profiles; every dynamic input needs a range in each of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            msg = f"the values of input {tensor.name!r} are used as a shape"
            raise DeviceError(msg, hint="Profiles of values are not handled.", kind="unsupported")
        shapes[tensor.name] = tuple(tensor.shape)
    dynamic = {name for name, shape in shapes.items() if -1 in shape}
    if dynamic and not job.settings.profiles:
        msg = f"input {min(dynamic)!r} of {job.onnx!r} has dynamic axes, and there is no profile"
        raise DeviceError(msg, hint="Give one: recipe key profiles, or --profile.", kind="usage")
    for number, ranges in enumerate(job.settings.profiles):
        _require_cover(number, ranges, shapes, dynamic)
        profile = builder.create_optimization_profile()
        for name in sorted(dynamic):
            each = ranges[name]
            profile.set_shape(name, each.min, each.opt, each.max)
        if config.add_optimization_profile(profile) < 0:
            msg = f"TensorRT refuses profile {number} of {job.onnx!r}"
            raise DeviceError(msg, kind="usage")


def _require_cover(
    number: int, ranges: Profile, shapes: Mapping[str, tuple[int, ...]], dynamic: set[str]
) -> None:
    """Require of a profile every dynamic input, no unknown one, and fixed axes as they are."""
    if lacking := sorted(dynamic - set(ranges)):
        msg = f"profile {number} has no range for input {lacking[0]!r}"
        raise DeviceError(msg, hint=f"Dynamic inputs: {', '.join(sorted(dynamic))}.", kind="usage")
    for name, each in ranges.items():
        shape = shapes.get(name)
        if shape is None:
            msg = f"profile {number} names {name!r}, which is no input of the graph"
            raise DeviceError(msg, hint=f"Its inputs: {', '.join(sorted(shapes))}.", kind="usage")
        fixed = all(
            size in (-1, low) and size in (-1, high)
            for size, low, high in zip(shape, each.min, each.max, strict=False)
        )
        if len(shape) != len(each.min) or not fixed:
            msg = f"profile {number} gives {name!r} {each.min} to {each.max}, the graph has {shape}"
            raise DeviceError(msg, hint="-1 is an axis of any size.", kind="usage")


def _set_flags(
    network: trt.INetworkDefinition, config: trt.IBuilderConfig, settings: BuildSettings
) -> list[str]:
    """Apply `settings` to the builder; return the names of the flags that it has now."""
    import tensorrt as trt

    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if settings.refittable:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        for name in settings.refittable:
            if not network.mark_weights_refittable(name):
                msg = f"TensorRT knows no weight {name!r} that could be refitted"
                raise DeviceError(msg, hint="Is it a weight of this graph?", kind="unsupported")
    elif settings.strip_weights:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    _set_hardware(config, settings.hardware_compatibility)
    table = {
        "TF32": trt.BuilderFlag.TF32,
        "VERSION_COMPATIBLE": trt.BuilderFlag.VERSION_COMPATIBLE,
        "STRIP_PLAN": trt.BuilderFlag.STRIP_PLAN,
        "REFIT_INDIVIDUAL": trt.BuilderFlag.REFIT_INDIVIDUAL,
        "REFIT_IDENTICAL": trt.BuilderFlag.REFIT_IDENTICAL,
    }
    return ["STRONGLY_TYPED", *(name for name, flag in table.items() if config.get_flag(flag))]


def _set_hardware(config: trt.IBuilderConfig, level: str) -> None:
    """Set which other GPUs may load the plan.

    Raises:
        DeviceError: This version of TensorRT has no such level.
    """
    import tensorrt as trt

    version = version_of(trt)
    require_level(version, level)
    levels = {
        "NONE": trt.HardwareCompatibilityLevel.NONE,
        "AMPERE_PLUS": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }
    if has(version, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"):
        levels["SAME_COMPUTE_CAPABILITY"] = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    config.hardware_compatibility_level = levels[HARDWARE_LEVELS[level].member]


def _described(tensor: trt.ITensor) -> tuple[str, TensorTable]:
    """Return the name of an input or output, its dtype and its shape, -1 for a dynamic axis."""
    return tensor.name, {"dtype": numpy_dtype(tensor.dtype)[0], "shape": list(tensor.shape)}
