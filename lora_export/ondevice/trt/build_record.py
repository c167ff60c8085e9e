"""The build record of a plan: its sources, builder and device; a plan without one is refused.

    engines/<graph>.<target>.trt<version>.plan      of TensorRT
    engines/<graph>.<target>.rtx<version>.plan      of TensorRT for RTX
    engines/<graph>.<target>.<...>.json             this record, written after the plan

The host's `lora_export.core.engine_record` is the same table as validated values.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, Final, cast

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.device_files import (
    atomic_write_bytes,
    read_errors,
    read_json,
    sha256_of_file,
)
from lora_export.ondevice.file_opening import require_file
from lora_export.ondevice.trt.libraries import TENSORRT, library_row, library_title
from lora_export.ondevice.trt.versions import parse_version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.ondevice.trt.cuda import Gpu
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = [
    "FOLDER",
    "FORMAT_VERSION",
    "plan_file",
    "read_record",
    "record_file",
    "require_device",
    "require_files",
    "require_plan",
    "timing_file",
    "write_record",
]

FORMAT_VERSION: Final = 2
_READABLE_VERSIONS: Final = (1, FORMAT_VERSION)
FOLDER: Final = "engines"
"""Where plans and their records lie, below an export or a bundle."""

_LIBRARY_OF_VERSION_1: Final = {False: TENSORRT, True: "test double"}
"""The library of a record of version 1, by its field ``double``."""

_AGAIN: Final = "Build it again: lora-export build OUT --target TARGET"
_AMPERE: Final = 8


def plan_file(graph: str, target: str, version: str, library: str = TENSORRT) -> str:
    """Return the path of a plan, relative to the export.

    >>> plan_file("base", "jetson-orin", "10.3.0")
    'engines/base.jetson-orin.trt10.3.0.plan'
    >>> plan_file("base", "rtx", "1.7.1", "tensorrt-rtx")
    'engines/base.rtx.rtx1.7.1.plan'

    Args:
        graph: The stem of the ONNX file.
        target: The device.
        version: The version of the library.
        library: The library; one that is not in `LIBRARIES` stands in TensorRT's place.
    """
    return f"{FOLDER}/{graph}.{target}.{_tag(library)}{version}.plan"


def record_file(plan: str) -> str:
    """Return the path of the record of a plan."""
    return plan.removesuffix(".plan") + ".json"


def timing_file(target: str, version: str, library: str = TENSORRT) -> str:
    """Return the path of the timing cache that all engines of a target share."""
    return f"{FOLDER}/{target}.{_tag(library)}{version}.timing"


def _tag(library: str) -> str:
    return library_row(library).tag


def write_record(path: Path, record: BuildRecord) -> str:
    """Write a record, complete or not at all; return its SHA-256."""
    return atomic_write_bytes(path, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")


def read_record(plan: Path) -> BuildRecord:
    """Return the record beside a plan; one of version 1 as version 2 has it.

    Raises:
        DeviceError: There is none, it is damaged, or of a newer version.
    """
    path = plan.parent / record_file(plan.name)
    if not os.path.lexists(path):
        msg = f"the plan {str(plan)!r} has no build record beside it"
        raise DeviceError(
            msg, hint=f"It was not finished, or was copied alone. {_AGAIN}", kind="input"
        )
    record = read_json(path, "the build record")
    version = record.get("format_version")
    if version not in _READABLE_VERSIONS:
        msg = f"the build record {str(path)!r} has format_version {version!r}"
        hint = f"This version reads 1 and {FORMAT_VERSION}."
        raise DeviceError(msg, hint=hint, kind="unsupported")
    if version == 1:
        _require_fields(path, record, {"double": bool, "gpu": dict})
        record = _from_version_1(record)
    _require_fields(path, record, _FIELDS)
    if record["built_on"] != "host":
        _require_fields(path, record, {"cuda": dict, "gpu": dict})
    if len(record["onnx"]) != 1:
        msg = f"the build record {str(path)!r} is damaged: it names {len(record['onnx'])} graphs"
        raise DeviceError(msg, hint=_AGAIN, kind="input")
    return cast("BuildRecord", record)


def _require_fields(path: Path, record: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    for key, kind in fields.items():
        if not isinstance(record.get(key), kind):
            msg = f"the build record {str(path)!r} is damaged: {key!r} is {record.get(key)!r}"
            raise DeviceError(msg, hint=_AGAIN, kind="input")


def _from_version_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of version 1 as version 2 has it."""
    return {
        **{key: value for key, value in record.items() if key != "double"},
        "format_version": FORMAT_VERSION,
        "library": _LIBRARY_OF_VERSION_1[record["double"]],
        "built_on": "device",
        "capabilities": [record["gpu"].get("compute_capability")],
    }


_FIELDS: Final[dict[str, type]] = {
    "base_fingerprint": str,
    "built_on": str,
    "capabilities": list,
    "graph": str,
    "inputs": dict,
    "library": str,
    "onnx": dict,
    "outputs": dict,
    "plan": dict,
    "refit": dict,
    "settings": dict,
    "target": str,
    "tensorrt": str,
    "weights": dict,
}
"""What a device reads of a record."""


def require_plan(plan: Path, record: BuildRecord) -> None:
    """Require that a plan is the one that its record tells of, byte for byte.

    Raises:
        DeviceError: It is missing, truncated or changed.
    """
    wanted = record["plan"]
    if not os.path.lexists(plan):
        msg = f"there is no plan {str(plan)!r}"
        raise DeviceError(msg, hint=_AGAIN, kind="input")
    with read_errors(f"the plan {str(plan)!r}"):
        size = require_file(plan).st_size
    if size != wanted.get("bytes"):
        msg = f"the plan {str(plan)!r} has {size} bytes, its record says {wanted.get('bytes')}"
        raise DeviceError(msg, hint=f"It is truncated, or another's. {_AGAIN}", kind="input")
    with read_errors(repr(str(plan))):
        found = sha256_of_file(plan)
    if found != wanted.get("sha256"):
        msg = f"the plan {str(plan)!r} does not match its build record: its SHA-256 differs"
        raise DeviceError(msg, hint=_AGAIN, kind="input")


def require_device(
    record: BuildRecord, *, library: str, tensorrt: str, driver: str, gpu: Gpu
) -> None:
    """Require that a plan is for the library, the driver and the GPU that are here.

    Args:
        record: The build record.
        library: The library that is here; see `lora_export.ondevice.trt.libraries`.
        tensorrt: Its version.
        driver: The version of CUDA that the driver supports; a newer one takes older plans.
        gpu: The device.

    Raises:
        DeviceError: It was built by another library or version, behind a newer driver, or for
            another GPU.
    """
    name = f"the engine {record['graph']!r} of {record['target']!r}"
    if record["library"] != library:
        made, here = library_title(record["library"]), library_title(library)
        msg = f"{name} was built by {made}, this is {here}"
        raise DeviceError(msg, hint=_AGAIN, kind="input")
    settings = record["settings"]
    built = str(record["tensorrt"])
    if built != tensorrt:
        newer = parse_version(tensorrt, library) >= parse_version(built, library)
        if not (settings.get("version_compatible") and newer):
            msg = f"{name} was built by {library_row(library).title} {built}, this is {tensorrt}"
            raise DeviceError(msg, hint=_AGAIN, kind="input")
    if record["built_on"] == "host":
        _require_capability(name, record, gpu)
        return
    cuda = record["cuda"]
    before = str(None if cuda is None else cuda.get("driver"))
    if _cuda(driver) < _cuda(before):
        msg = f"{name} was built with a driver for CUDA {before}, this one is for {driver}"
        raise DeviceError(msg, hint=f"Update the driver, or: {_AGAIN}", kind="input")
    _require_gpu(name, record, gpu, str(settings.get("hardware_compatibility", "none")))


def _cuda(version: str) -> tuple[int, int]:
    """Return major and minor of a version of CUDA.

    Raises:
        DeviceError: It is none.
    """
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", version)
    if found is None:
        msg = f"the build record is damaged: {version!r} is not a version of CUDA"
        raise DeviceError(msg, hint=_AGAIN, kind="input")
    return int(found[1]), int(found[2])


def _require_capability(name: str, record: BuildRecord, gpu: Gpu) -> None:
    """Require that a plan that was built ahead of time runs on a GPU of this kind."""
    capabilities = [str(each) for each in record["capabilities"]]
    named = record["settings"].get("compute_capabilities")
    least = min(map(_numbers, capabilities), default=(0, 0))
    fits = gpu.compute_capability in capabilities
    if not fits and (named or _numbers(gpu.compute_capability) < least):
        later = "" if named else " and later"
        msg = (
            f"{name} was built for compute capability {', '.join(capabilities)}{later}, "
            f"this GPU is {gpu.name} ({gpu.compute_capability})"
        )
        hint = f"Build it again with --compute-capability {gpu.compute_capability}."
        raise DeviceError(msg, hint=hint, kind="input")


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _require_gpu(name: str, record: BuildRecord, gpu: Gpu, level: str) -> None:
    built_on, capabilities = record["gpu"], record["capabilities"]
    built = None if built_on is None else built_on.get("name")
    fits = {
        "none": built == gpu.name and gpu.compute_capability in capabilities,
        "same-compute-capability": gpu.compute_capability in capabilities,
        "ampere+": int(gpu.compute_capability.partition(".")[0]) >= _AMPERE,
    }
    if not fits.get(level, False):
        msg = (
            f"{name} was built for {built} (compute capability "
            f"{', '.join(map(str, capabilities))}), "
            f"this GPU is {gpu.name} ({gpu.compute_capability})"
        )
        raise DeviceError(msg, hint=_AGAIN, kind="input")


def require_files(record: BuildRecord, sha256: Mapping[str, str], fingerprint: str) -> None:
    """Require that a plan was made of the files that an export or a bundle has now.

    Args:
        record: The build record.
        sha256: The SHA-256 of each file, as the manifest has it.
        fingerprint: That of the base.

    Raises:
        DeviceError: The graph, a weight file or the base is another.
    """
    name = f"the engine {record['graph']!r} of {record['target']!r}"
    if record["base_fingerprint"] != fingerprint:
        msg = (
            f"{name} is of another base: {str(record['base_fingerprint'])[:16]}…, "
            f"not {fingerprint[:16]}…"
        )
        raise DeviceError(msg, hint=_AGAIN, kind="input")
    for file, digest in {**record["onnx"], **record["weights"]}.items():
        if sha256.get(file) != digest:
            msg = f"{name} was built from another {file!r} than the export has now"
            raise DeviceError(msg, hint=_AGAIN, kind="input")
