"""An engine from an ONNX file: the network is strongly typed, its precision is the graph's.

    parse → profiles, flags, timing cache → build → plan, timing cache, record

The plan, the timing cache and the record are each complete or absent; the record is written last.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.device_files import (
    atomic_write_bytes,
    read_errors,
    resolve_inside,
    sha256_of_file,
    storage_errors,
)
from lora_export.ondevice.external_data import graph_bytes, read_graph
from lora_export.ondevice.trt.api import Log, import_library, numpy_dtype
from lora_export.ondevice.trt.build_record import (
    FORMAT_VERSION,
    plan_file,
    record_file,
    timing_file,
    write_record,
)
from lora_export.ondevice.trt.builder_capabilities import set_capabilities
from lora_export.ondevice.trt.builder_flags import set_flags
from lora_export.ondevice.trt.builder_profiles import add_profiles
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.libraries import TENSORRT, library_of, library_row, library_title
from lora_export.ondevice.trt.monitor import peak_host_bytes, watch
from lora_export.ondevice.trt.network_edits import decompose_attention, dequantize_constants
from lora_export.ondevice.trt.parsing import parse_graph, start_builder
from lora_export.ondevice.trt.plan_loading import deserialize
from lora_export.ondevice.trt.record_table import RefitTable
from lora_export.ondevice.trt.refit import neighbours
from lora_export.ondevice.trt.timing_cache import keep_timing_cache, use_timing_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import tensorrt as trt

    from lora_export.ondevice.trt.build_settings import BuildSettings
    from lora_export.ondevice.trt.cuda import Cuda
    from lora_export.ondevice.trt.parsing import Refusal
    from lora_export.ondevice.trt.record_table import (
        BuildDetails,
        BuildPlace,
        BuildRecord,
        TensorTable,
    )

    Tell = Callable[[str], None]

__all__ = ["BuildJob", "build", "publish", "require_sources"]


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
        library: The library that builds it.
        needs_edits: Whether the network is changed after parsing, which ``trtexec`` does not do.
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
    library: str = TENSORRT
    needs_edits: bool = False


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
    log = Log(import_library(job.library))
    library, version = library_of(log.module), str(log.module.__version__)
    device = None if library_row(library).builds_ahead else cuda or open_cuda()
    say = tell or _silent
    require_sources(job)
    started = time.monotonic()
    built = _build(job, log, device, say)
    seconds = time.monotonic() - started
    say(f"writing {plan_file(job.graph, job.target, version, library)}")
    return publish(
        job,
        built.plan,
        library=library,
        tensorrt=version,
        cuda=device,
        details={
            "flags": built.flags,
            "tool": "api",
            "command": None,
            "inputs": built.inputs,
            "outputs": built.outputs,
            "refit": _refit_rows(job, built.plan, log),
            "seconds": round(seconds, 3),
            "peak_device_bytes": built.peak_device_bytes,
        },
    )


def _refit_rows(job: BuildJob, plan: Any, log: Log) -> dict[str, RefitTable]:
    """Return the rows of the weights that a refit sets: those marked, and their neighbours."""
    names = job.settings.refittable
    if not names:
        return {}
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
            msg = f"{file!r} does not match the manifest: its SHA-256 differs"
            raise DeviceError(msg, hint="Copy it again, or export again.", kind="input")
    read_graph(resolve_inside(job.root, job.onnx))  # TensorRT opens what the graph names


def publish(
    job: BuildJob,
    plan: Any,
    *,
    library: str,
    tensorrt: str,
    cuda: Cuda | None,
    details: BuildDetails,
) -> BuildRecord:
    """Write a plan and its record; return the record.

    Args:
        job: What was built.
        plan: The plan's bytes.
        library: The library that built it.
        tensorrt: Its version.
        cuda: The device that it was built on; None where it was built ahead of time.
        details: The rest of the record.

    Raises:
        DeviceError: The disk refuses; there is no plan with a record then.
    """
    file = plan_file(job.graph, job.target, tensorrt, library)
    path, record_path = resolve_inside(job.root, file), resolve_inside(job.root, record_file(file))
    with storage_errors(str(record_path)):
        record_path.unlink(missing_ok=True)  # from here on nobody trusts an old plan
    data = memoryview(plan)
    digest = atomic_write_bytes(path, data)
    record: BuildRecord = {
        "format_version": FORMAT_VERSION,
        "graph": job.graph,
        "target": job.target,
        "library": library,
        "tensorrt": tensorrt,
        **_place_of(job, library, cuda),
        "precision": job.settings.precision,
        "settings": job.settings.to_json(),
        "onnx": {job.onnx: job.sha256[job.onnx]},
        "weights": {each: job.sha256[each] for each in job.weights},
        "base_fingerprint": job.base_fingerprint,
        "plan": {"file": file, "sha256": digest, "bytes": data.nbytes},
        "refit": {},
        "adapter": None,
        "peak_host_bytes": peak_host_bytes(),
        **details,
    }
    write_record(record_path, record)
    return record


def _place_of(job: BuildJob, library: str, cuda: Cuda | None) -> BuildPlace:
    """Return where a plan was built, and the compute capabilities that it is for."""
    if cuda is None:
        capabilities = (
            job.settings.compute_capabilities or library_row(library).default_capabilities
        )
        return {
            "built_on": "host",
            "capabilities": list(capabilities),
            "cuda": None,
            "gpu": None,
        }
    driver, runtime = cuda.versions()
    gpu = cuda.gpu()
    return {
        "built_on": "device",
        "capabilities": [gpu.compute_capability],
        "cuda": {"driver": driver, "runtime": runtime},
        "gpu": {
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "memory_bytes": gpu.memory_bytes,
        },
    }


def _build(job: BuildJob, log: Log, cuda: Cuda | None, say: Tell) -> _Built:
    """Parse and build; nothing but the timing cache is written."""
    trt, library = log.module, library_of(log.module)
    builder = start_builder(log)
    path = resolve_inside(job.root, job.onnx)
    say(f"parsing {job.onnx}")
    parsed = parse_graph(builder, log, graph_bytes(path) if job.model is None else job.model, path)
    if parsed.refusals:
        raise _parser_error(job, library, parsed.refusals)
    network = parsed.network
    decompose_attention(network, log)
    dequantize_constants(network, log)
    config = builder.create_builder_config()
    add_profiles(builder, network, config, job.settings.profiles, job.onnx)
    flags = set_flags(trt, network, config, job.settings)
    if cuda is None:
        set_capabilities(trt, config, job.settings.compute_capabilities)
        timing, cached = None, False
    else:
        timing = resolve_inside(
            job.root, timing_file(job.target, str(log.module.__version__), library)
        )
        cached = use_timing_cache(config, timing)
    say(f"building for {job.target}{' with a timing cache' if cached else ''}")
    with watch(config, trt, cuda, say) as seen:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        msg = f"{library_title(library)} could not build {job.onnx!r}: {log.last_message()}"
        raise DeviceError(msg, hint="Smaller profiles or a smaller --workspace need less memory.")
    if timing is not None:
        keep_timing_cache(config, timing)
    inputs, outputs = _interface(network)
    return _Built(plan, flags, inputs, outputs, seen.peak_device_bytes)


def _parser_error(job: BuildJob, library: str, refusals: Sequence[Refusal]) -> DeviceError:
    """Return the first refusal of the parser as an error, with the node's name and operator."""
    first = refusals[0]
    node = f"node {first.node!r} ({first.operator}): " if first.operator else ""
    more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
    msg = f"{library_title(library)} cannot parse {job.onnx!r}: {node}{first.text}{more}"
    hint = f"See all of it with: lora-export preflight OUT --target {job.target} --parser"
    return DeviceError(msg, hint=hint, kind="unsupported")


def _interface(
    network: trt.INetworkDefinition,
) -> tuple[dict[str, TensorTable], dict[str, TensorTable]]:
    """Return the inputs and the outputs of a network."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    return dict(map(_described, inputs)), dict(map(_described, outputs))


def _described(tensor: trt.ITensor) -> tuple[str, TensorTable]:
    """Return the name of an input or output, its dtype and its shape, -1 for a dynamic axis."""
    return tensor.name, {"dtype": numpy_dtype(tensor.dtype)[0], "shape": list(tensor.shape)}
