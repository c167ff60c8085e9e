"""Builds through ``trtexec``: its command line, and the engine that it writes.

Flags: ``trtexec --help`` of TensorRT 10.3 to 10.16 (samples/common/sampleOptions.cpp). In 11 every
network is strongly typed, and there is no flag for it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import LoraExportError, MissingRuntimeError, UsageError
from lora_export.core.files import (
    atomic_write_bytes,
    resolve_inside,
    staging_folder,
    storage_errors,
)
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.external_data import graph_bytes
from lora_export.ondevice.file_opening import is_regular_file, open_file
from lora_export.ondevice.printable import shell_command
from lora_export.ondevice.trt.api import import_tensorrt
from lora_export.ondevice.trt.build_record import timing_file
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.engine_builder import publish, require_sources
from lora_export.ondevice.trt.libraries import library_of
from lora_export.ondevice.trt.timing_cache import stored_timings
from lora_export.ondevice.trt.versions import (
    HARDWARE_LEVELS,
    STRONG_TYPES_ONLY,
    parse_version,
    require_level,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from lora_export.ondevice.trt.build_settings import Profile
    from lora_export.ondevice.trt.engine_builder import BuildJob
    from lora_export.ondevice.trt.record_table import BuildRecord, TensorTable

__all__ = ["build_with_trtexec", "find_trtexec", "trtexec_line"]

_ON_JETSON: Final = Path("/usr/src/tensorrt/bin/trtexec")
_BANNER: Final = re.compile(r"\b(TensorRT(?:-\w+)?) v(\d{5,6})\b")
"""The banner of ``trtexec``: ``[TensorRT v100300]``."""

_SHOWN: Final = 5


def trtexec_line(
    job: BuildJob,
    version: str,
    *,
    executable: str = "trtexec",
    onnx: str,
    plan: str,
    timing_cache: str,
) -> list[str]:
    """Return the command line that builds an engine as `ondevice.trt.engine_builder.build` does.

    Args:
        job: What is built.
        version: The version of TensorRT that it is for.
        executable: What is run.
        onnx: The ONNX file.
        plan: Where the plan goes.
        timing_cache: The timing cache that is read and written.

    Raises:
        UsageError: Weights are to be marked refittable one by one, which ``trtexec`` cannot.
        DeviceError: The version lacks something that is asked for.
    """
    settings = job.settings
    if settings.refittable:
        msg = "trtexec makes all weights of an engine refittable, or none"
        raise UsageError(msg, hint="Build it without --trtexec.")
    release = parse_version(version)
    require_level(release, settings.hardware_compatibility)
    level = HARDWARE_LEVELS[settings.hardware_compatibility]
    flags = {
        "--stronglyTyped": release < STRONG_TYPES_ONLY,
        "--noTF32": not settings.tf32,
        "--versionCompatible": settings.version_compatible,
        "--stripWeights": settings.strip_weights,
        f"--hardwareCompatibilityLevel={level.trtexec}": level.member != "NONE",
        f"--builderOptimizationLevel={settings.optimization_level}": (
            settings.optimization_level is not None
        ),
        f"--memPoolSize=workspace:{settings.workspace_bytes}B": (
            settings.workspace_bytes is not None
        ),
    }
    return [
        executable,
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        *(flag for flag, wanted in flags.items() if wanted),
        *_shapes(settings.profiles),
        f"--timingCacheFile={timing_cache}",
        "--skipInference",
    ]


def _shapes(profiles: Sequence[Profile]) -> list[str]:
    """Return the profiles; several are numbered, and each number stands before its shapes."""
    found: list[str] = []
    for number, profile in enumerate(profiles):
        if len(profiles) > 1:
            found.append(f"--profile={number}")
        found += [
            f"--{which}Shapes="
            + ",".join(
                f"{name}:{'x'.join(map(str, getattr(each, which)))}"
                for name, each in sorted(profile.items())
            )
            for which in ("min", "opt", "max")
        ]
    return found


def find_trtexec() -> str:
    """Return where ``trtexec`` is.

    Raises:
        MissingRuntimeError: It is nowhere.
    """
    found = shutil.which("trtexec") or (str(_ON_JETSON) if _ON_JETSON.is_file() else None)
    if found is None:
        msg = f"trtexec is neither on PATH nor at {_ON_JETSON}"
        hint = (
            "It comes with TensorRT's packages and containers, not with the Python wheel; "
            "on a Jetson: apt install libnvinfer-bin. Without --trtexec Python's API builds."
        )
        raise MissingRuntimeError(msg, hint=hint)
    return found


def build_with_trtexec(job: BuildJob) -> BuildRecord:
    """Build an engine with ``trtexec``; return its record.

    Raises:
        MissingRuntimeError: There is no ``trtexec``.
        LoraExportError: It fails; the last lines that it printed are in the message.
        DeviceError: A file is not what the manifest says, or the disk refuses.
    """
    executable = find_trtexec()
    cuda = open_cuda()
    require_sources(job)
    library, version = _installed(executable)
    timing = job.root / timing_file(job.target, version)
    with staging_folder(job.root, "trtexec") as staging, _parsable(job) as onnx:
        plan, cache = staging / "engine.plan", staging / "timing"
        if stored := stored_timings(timing):
            with storage_errors(str(cache)):
                cache.write_bytes(stored)
        line = trtexec_line(
            job,
            version,
            executable=executable,
            onnx=str(onnx),
            plan=str(plan),
            timing_cache=str(cache),
        )
        started = time.monotonic()
        _run(line, job)
        seconds = time.monotonic() - started
        if not is_regular_file(plan):
            msg = f"trtexec exited with 0, but wrote no plan of {job.onnx!r}"
            raise LoraExportError(msg, hint=f"Run it by hand: {shell_command(line)}")
        graph = parse_onnx(graph_bytes(onnx)).graph
        given = {each.name for each in graph.initializer}
        if written := stored_timings(cache):
            atomic_write_bytes(timing, written)
        with open_file(plan) as stream:
            data = stream.read()
        return publish(
            job,
            data,
            library=library,
            tensorrt=version,
            cuda=cuda,
            details={
                "flags": [each for each in line[3:] if each.startswith("--") and "=" not in each],
                "tool": "trtexec",
                "command": line,
                "inputs": dict(_described(each) for each in graph.input if each.name not in given),
                "outputs": dict(map(_described, graph.output)),
                "seconds": round(seconds, 3),
                "peak_device_bytes": 0,
            },
        )


@contextlib.contextmanager
def _parsable(job: BuildJob) -> Iterator[Path]:
    """Yield the ONNX file to parse: the job's own, or one beside it that is gone afterwards.

    Weight files are named relative to the ONNX file: a rewritten graph has to lie where it lay.
    """
    own = resolve_inside(job.root, job.onnx)
    if job.model is None:
        yield own
        return
    path = own.with_name(f".lora-export-{job.graph}.required.onnx")
    try:
        with storage_errors(str(path)):
            path.unlink(missing_ok=True)  # a link here would be written through
            with path.open("xb") as stream:
                stream.write(job.model)
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _installed(executable: str) -> tuple[str, str]:
    """Return the library that ``trtexec`` is of, and its version.

    The version is that of the Python module where it is the same library and release: it has one
    more number, and an engine is loaded by comparing it.
    """
    with _startable(executable):
        done = subprocess.run(  # noqa: S603  (found on PATH, or where JetPack puts it)
            [executable, "--help"], capture_output=True, text=True, errors="replace", check=False
        )
    found = _BANNER.search(done.stdout)
    if found is None:
        msg = f"{executable} does not report its TensorRT version"
        raise LoraExportError(msg, hint="Build it without --trtexec.")
    library, number = found[1].lower(), int(found[2])  # 100300 is 10.3.0
    version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    try:
        module = import_tensorrt()
    except DeviceError:
        return library, version
    own = str(module.__version__)
    same = library_of(module) == library and own.startswith(version)
    return library, own if same else version


@contextlib.contextmanager
def _startable(executable: str) -> Iterator[None]:
    """Translate what the system raises where a program cannot be started."""
    try:
        yield
    except OSError as error:
        msg = f"{executable} cannot be started: {error.strerror}"
        raise LoraExportError(msg, hint="Build it without --trtexec.") from error


def _run(line: list[str], job: BuildJob) -> None:
    with contextlib.ExitStack() as stack:
        with _startable(line[0]):
            process = stack.enter_context(
                subprocess.Popen(  # noqa: S603  (see `_installed`)
                    line,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        errors = [each for each in printed.splitlines() if "[E]" in each] or printed.splitlines()
        msg = f"trtexec could not build {job.onnx!r} (exit {process.returncode}):"
        hint = f"Run it by hand: {shell_command(line)}"
        raise LoraExportError(msg, items=errors[-_SHOWN:], hint=hint)


def _described(value: onnx.ValueInfoProto) -> tuple[str, TensorTable]:
    """Return the name of an input or output, its dtype and its shape, -1 for a dynamic axis."""
    kind = value.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim]
    dtype = next((row.name for row in DTYPES.values() if row.onnx == kind.elem_type), "unknown")
    return value.name, {"dtype": dtype, "shape": shape}
