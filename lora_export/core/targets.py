"""The capabilities of each target; the one copy of these facts.

A row says what is true of every device of its name, and where each fact comes from. Everything that
depends on the place where a graph runs asks here: the dtype and the opset of an export, the checks
before an engine is built, the flags of its build, the bundle for a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AUTO",
    "DEFAULT_TARGET",
    "PRECISIONS",
    "RTX",
    "TARGETS",
    "Target",
    "by_name",
    "dtype_of_precision",
    "require_engine_target",
    "require_tensorrt_target",
    "target_of_device",
]


@dataclass(frozen=True)
class Target:
    """A place where a graph runs.

    Attributes:
        name: What users type.
        dtypes: Dtypes of weights that it computes with.
        opset: The ONNX opset to export for it: the newest that the oldest of its runtimes reads.
        sources: Where the facts come from, by attribute.
        compute_capability: ``(8, 7)`` for sm_87; None where there is no GPU, or any.
        tensorrt: Versions of TensorRT that its software offers, oldest first; empty for a place
            that runs graphs without TensorRT.
        software: What brings each of these versions; as many as there are versions.
        precisions: Formats that its tensor cores compute in, quantized ones included.
        dla: Versions of TensorRT that run a deep learning accelerator of devices of this name, each
            with the devices that have one.
        memory_gib: Sizes that the devices are sold with, smallest first.
        shared_memory: Whether that memory is the host's as well.
        bound_plans: Whether no plan can be built there that other GPUs load too.
        rtx: Whether TensorRT for RTX builds engines for it, ahead of time on any machine.
        blocks: The first of its versions of TensorRT that is known to read weights in blocks, as
            int4 has them; None where the oldest is not in question.
    """

    name: str
    dtypes: tuple[str, ...]
    opset: int
    sources: Mapping[str, str]
    compute_capability: tuple[int, int] | None = None
    tensorrt: tuple[str, ...] = ()
    software: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    dla: tuple[tuple[str, str], ...] = ()
    memory_gib: tuple[int, ...] = ()
    shared_memory: bool = False
    bound_plans: bool = False
    rtx: bool = False
    blocks: str | None = None

    @property
    def architecture(self) -> str | None:
        """``"sm_87"``, as compilers write the compute capability."""
        if self.compute_capability is None:
            return None
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"


PRECISIONS: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""The dtype of the weights for each word of ``--precision``."""

RTX: Final = "rtx"
"""Every GPU from Ampere on, GeForce RTX and others: one engine of TensorRT for RTX for all."""

AUTO: Final = "auto"
"""The device that the command runs on; which one that is, is asked when an engine is built."""

_HALVES: Final = ("float32", "float16", "bfloat16")
_AMPERE: Final = ("fp32", "tf32", "fp16", "bf16", "int8", "int4")
_ADA: Final = (*_AMPERE, "fp8")
_BLACKWELL: Final = (*_ADA, "fp4")

_CAPABILITY: Final = "developer.nvidia.com/cuda-gpus"
_PRECISIONS: Final = (
    "support matrix of TensorRT Model Optimizer: int8 and int4 from Ampere, fp8 from Ada, fp4 from "
    "Blackwell; ONNX Runtime's pull request 24915: bf16 from compute capability 8.0"
)
_OPSET: Final = "onnx-tensorrt, docs/operators.md: 10.1 reads 9 to 20; the next table is 10.15's"
_HOST: Final = ("10.3", "10.7", "10.13", "10.16", "11.4")
_HOST_SOURCE: Final = "versions whose Python API was read from their bindings"
_BOUND: Final = "developer guide of TensorRT, Hardware Compatibility: not on JetPack"
_RTX_SOURCE: Final = "built with TensorRT for RTX 1.7.1 on a machine without a GPU"
_BLACKWELL_HOST: Final = ("10.13", "10.16", "11.4")
_BLACKWELL_SOURCE: Final = (
    "release notes of TensorRT 10.8, the first for Blackwell; " + _HOST_SOURCE
)


def _sources(tensorrt: str, memory: str, **others: str) -> dict[str, str]:
    """Return the sources of a device with a GPU."""
    return {
        "compute_capability": _CAPABILITY,
        "dtypes": _PRECISIONS,
        "precisions": _PRECISIONS,
        "opset": _OPSET,
        "tensorrt": tensorrt,
        "memory_gib": memory,
        **others,
    }


def _card(
    name: str,
    capability: tuple[int, int],
    precisions: tuple[str, ...],
    memory_gib: tuple[int, ...],
    memory: str,
    *,
    rtx: bool = False,
) -> Target:
    """Return a card in a host: TensorRT comes from a package, in the version one likes."""
    blackwell = "fp4" in precisions
    versions = _BLACKWELL_HOST if blackwell else _HOST
    return Target(
        name,
        _HALVES,
        20,
        _sources(
            _BLACKWELL_SOURCE if blackwell else _HOST_SOURCE,
            memory,
            **({"rtx": _RTX_SOURCE} if rtx else {}),
        ),
        compute_capability=capability,
        tensorrt=versions,
        software=tuple(f"TensorRT {version}" for version in versions),
        precisions=precisions,
        memory_gib=memory_gib,
        rtx=rtx,
    )


TARGETS: Final[dict[str, Target]] = {
    row.name: row
    for row in (
        Target(
            "onnxruntime-cpu",
            ("float32", "float16"),
            20,
            {
                "dtypes": "tried with ONNX Runtime 1.32: float16 is partial and slow, "
                "bfloat16 is refused",
                "opset": "tried with ONNX Runtime 1.32",
            },
        ),
        Target(
            "onnxruntime-cuda",
            _HALVES,
            20,
            {
                "dtypes": "ONNX Runtime's operator kernels document",
                "opset": "ONNX Runtime's operator kernels document",
            },
        ),
        Target(
            "jetson-orin",
            _HALVES,
            20,
            _sources(
                "JetPack 6: 10.3; 7.2: 10.16.2 (meta-tegra, L4T 39.2); 7.2.2: 11.4.1",
                "as sold: Orin Nano 4 and 8, Orin NX 8 and 16, AGX Orin 32 and 64 GB",
                dla="support matrix of TensorRT and release notes: on Orin NX and AGX Orin, not on "
                "Orin Nano; 10.7 was the last release with it, until 11.4.1 on AGX Orin alone",
                shared_memory="CUDA for Tegra: the GPU works in the memory of the CPU",
                bound_plans=_BOUND,
                blocks="blocks are of opset 21, and " + _OPSET,
            ),
            compute_capability=(8, 7),
            tensorrt=("10.3", "10.16", "11.4"),
            software=("JetPack 6", "JetPack 7.2", "JetPack 7.2.2"),
            precisions=_AMPERE,
            dla=(("10.3", "Orin NX and AGX Orin"), ("11.4", "AGX Orin")),
            memory_gib=(4, 8, 16, 32, 64),
            shared_memory=True,
            bound_plans=True,
            blocks="10.16",
        ),
        Target(
            "jetson-thor",
            _HALVES,
            20,
            _sources(
                "JetPack 7.0: 10.13.3; 7.2: 10.16.2 (meta-tegra, L4T 39.2); 7.2.2: 11.4.1",
                "as sold: T4000 64, T5000 128 GB",
                shared_memory="CUDA for Tegra: the GPU works in the memory of the CPU",
                bound_plans=_BOUND,
            ),
            compute_capability=(11, 0),
            tensorrt=("10.13", "10.16", "11.4"),
            software=("JetPack 7.0", "JetPack 7.2", "JetPack 7.2.2"),
            precisions=_BLACKWELL,
            memory_gib=(64, 128),
            shared_memory=True,
            bound_plans=True,
        ),
        Target(
            "dgx-spark",
            _HALVES,
            20,
            _sources(
                _BLACKWELL_SOURCE,
                "as sold: 128 GB, unified",
                shared_memory="as sold: 128 GB, unified",
                rtx=_RTX_SOURCE,
            ),
            compute_capability=(12, 1),
            tensorrt=_BLACKWELL_HOST,
            software=tuple(f"TensorRT {version}" for version in _BLACKWELL_HOST),
            precisions=_BLACKWELL,
            memory_gib=(128,),
            shared_memory=True,
            rtx=True,
        ),
        _card("a10", (8, 6), _AMPERE, (24,), "as sold"),
        _card("l4", (8, 9), _ADA, (24,), "as sold"),
        _card("a100", (8, 0), _AMPERE, (40, 80), "as sold", rtx=True),
        _card("h100", (9, 0), _ADA, (80,), "as sold: the SXM and PCIe cards"),
        _card("h200", (9, 0), _ADA, (141,), "as sold"),
        _card(
            "rtx-ampere",
            (8, 6),
            _AMPERE,
            (8, 12, 24),
            "as sold: GeForce RTX 3070, 3060, 3090",
            rtx=True,
        ),
        _card(
            "rtx-ada",
            (8, 9),
            _ADA,
            (8, 12, 16, 24),
            "as sold: GeForce RTX 4060 to 4090",
            rtx=True,
        ),
        _card(
            "rtx-blackwell",
            (12, 0),
            _BLACKWELL,
            (8, 12, 16, 32),
            "as sold: GeForce RTX 5060 to 5090",
            rtx=True,
        ),
        Target(
            RTX,
            _HALVES,
            20,
            {
                "dtypes": _PRECISIONS,
                "precisions": "what every GPU from Ampere on computes in",
                "opset": "tried with TensorRT for RTX 1.7.1: the parser reads 20",
                "rtx": _RTX_SOURCE,
            },
            precisions=_AMPERE,
            rtx=True,
        ),
        Target(
            AUTO,
            ("float32", "float16"),
            20,
            {
                "dtypes": "what every GPU that TensorRT supports computes in",
                "precisions": "what every GPU that TensorRT supports computes in",
                "opset": _OPSET,
                "tensorrt": _HOST_SOURCE,
            },
            tensorrt=_HOST,
            software=tuple(f"TensorRT {version}" for version in _HOST),
            precisions=("fp32", "fp16"),
        ),
    )
}
DEFAULT_TARGET: Final = "onnxruntime-cpu"


def by_name(name: str) -> Target:
    """Return the target called `name`.

    Raises:
        UsageError: No such target is in the table; one with a similar name is suggested.
    """
    found = TARGETS.get(name)
    if found is None:
        msg = f"unknown target {name!r}"
        raise UsageError(msg, hint=did_you_mean(name, TARGETS))
    return found


def require_tensorrt_target(name: str) -> Target:
    """Return the target called `name`, which runs engines.

    Raises:
        UsageError: There is no such target, or graphs run there without TensorRT.
    """
    target = by_name(name)
    if name == RTX:
        msg = f"the target {name!r} is for TensorRT for RTX, not for TensorRT"
        hint = "Its engines: lora-export build OUT --target rtx. Or name a device, such as rtx-ada."
        raise UsageError(msg, hint=hint)
    if not target.tensorrt:
        known = ", ".join(row.name for row in TARGETS.values() if row.tensorrt)
        msg = f"the target {name!r} runs graphs in ONNX Runtime: there is no engine for it"
        raise UsageError(msg, hint=f"Targets with TensorRT: {known}.")
    return target


def require_engine_target(name: str, *, rtx: bool) -> Target:
    """Return the target called `name`, for which a library builds engines.

    Args:
        name: The target.
        rtx: Whether TensorRT for RTX builds, in place of TensorRT.

    Raises:
        UsageError: There is no such target, or the library builds none for it.
    """
    if not rtx:
        return require_tensorrt_target(name)
    target = by_name(name)
    if not target.rtx:
        known = ", ".join(row.name for row in TARGETS.values() if row.rtx)
        msg = f"TensorRT for RTX builds no engine for the target {name!r}"
        raise UsageError(msg, hint=f"Targets that it builds for: {known}.")
    return target


def dtype_of_precision(precision: str, target: Target) -> str:
    """Return the dtype of weights that ``--precision`` means, where the target has it.

    Raises:
        UsageError: There is no such word.
        UnsupportedError: The target does not compute in it.
    """
    dtype = PRECISIONS.get(precision)
    if dtype is None:
        msg = f"unknown precision {precision!r}"
        raise UsageError(msg, hint=f"Known: {', '.join(PRECISIONS)}.")
    if dtype not in target.dtypes:
        msg = f"the target {target.name!r} does not support {precision} ({dtype})"
        raise UnsupportedError(msg, hint=f"It supports: {', '.join(target.dtypes)}.")
    return dtype


def target_of_device(compute_capability: tuple[int, int], device: str = "") -> Target | None:
    """Return the row of a device that is present: what `AUTO` means there.

    Where several rows share a compute capability, the one whose name is in the device's wins.

    Args:
        compute_capability: The device's, as the driver says it.
        device: The device's name, as the driver says it (``"NVIDIA H100 80GB HBM3"``).
    """
    rows = [row for row in TARGETS.values() if row.compute_capability == compute_capability]
    words = re.split(r"[^a-z0-9]+", device.lower())  # "rtx" of "NVIDIA GeForce RTX 4090"
    named = (row for row in rows if row.name.partition("-")[0] in words)
    return next(named, rows[0] if rows else None)
