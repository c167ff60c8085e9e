"""Builds by TensorRT for RTX: what is asked for, checked before anything is built.

Such an engine is built ahead of time on any machine, for a list of compute capabilities; the GPU
that loads it compiles it to its own kernels. What a build needs a CUDA driver for is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.memory import available_bytes
from lora_export.engines.memory_need import stored_bytes
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.trt.builder_capabilities import require_capabilities
from lora_export.ondevice.trt.libraries import LIBRARIES, TENSORRT_RTX

if TYPE_CHECKING:
    from collections.abc import Collection

    from lora_export.core.targets import Target
    from lora_export.engines.engine_options import EngineOptions

__all__ = ["ahead_of_time", "build_memory_bytes", "require_memory", "weight_bytes"]

_TITLE: Final = LIBRARIES[TENSORRT_RTX].title

_FIXED_BYTES: Final = 330_000_000
_FACTOR: Final = 3.15

_LACKING: Final = {"7.5": ("float32", "bfloat16", "int4")}
"""Dtypes for which no engine is built for a compute capability: tried with 1.7.1."""


def ahead_of_time(
    options: EngineOptions, target: Target, dtype: str, schemes: Collection[str] = ()
) -> EngineOptions:
    """Return the options of a build by TensorRT for RTX, with the target's compute capability.

    Args:
        options: What the user asks for.
        target: A row of `core.targets` that TensorRT for RTX builds for.
        dtype: The dtype of the graphs.
        schemes: Those of their quantized weights: ``int4``, ``int8``.

    Raises:
        UsageError: An option is none of this library, or the target is for other GPUs.
        DeviceError: A compute capability is not known.
        UnsupportedError: The build needs a CUDA driver, or a compute capability lacks the dtype.
    """
    _refuse_flags(options)
    own = target.compute_capability
    named = tuple(dict.fromkeys(options.compute_capabilities))
    if own is not None:
        capability = f"{own[0]}.{own[1]}"
        if named not in {(), (capability,)}:
            msg = f"the target {target.name!r} has compute capability {capability}"
            hint = f"Leave --compute-capability out, or: --target rtx {_flag(named)}"
            raise UsageError(msg, hint=hint)
        named = (capability,)
    require_capabilities(TENSORRT_RTX, named)
    for each in named:
        if lacking := sorted({dtype, *schemes}.intersection(_LACKING.get(each, ()))):
            msg = f"{_TITLE} builds no engine in {lacking[0]} for compute capability {each}"
            has = ", ".join(e for e in LIBRARIES[TENSORRT_RTX].capabilities if e not in _LACKING)
            flags = "--dtype float16" if dtype in lacking else ""
            flags += " --quantize int8" if "int4" in lacking else ""
            hint = f"Those that have it: {has}. Or export again with {flags.strip()}."
            raise UnsupportedError(msg, hint=hint)
    return replace(options, compute_capabilities=named)


def build_memory_bytes(onnx_bytes: bytes) -> int:
    """Return the estimated peak of a build's resident memory, in bytes.

        330 MB + 3.15 · W,  W the bytes of the graph's initializers

    Measured with 1.7.1, W from 96 MB to 2.2 GB, float32 and float16 (``bench/rtx_build.py``), and
    from 51 to 84 MB, int4 and int8: within a tenth of what the process took.

    Args:
        onnx_bytes: The graph; its weights may lie in other files.
    """
    return _FIXED_BYTES + int(_FACTOR * weight_bytes(onnx_bytes))


def weight_bytes(onnx_bytes: bytes) -> int:
    """Return the bytes of a graph's initializers, those in other files included."""
    return stored_bytes(parse_onnx(onnx_bytes).graph.initializer)


def require_memory(onnx_bytes: bytes, onnx: str) -> None:
    """Require that this machine has the memory that a build is estimated to take.

    Args:
        onnx_bytes: The graph.
        onnx: Its file, for the message.

    Raises:
        UnsupportedError: It has less.
    """
    needed, available = build_memory_bytes(onnx_bytes), available_bytes()
    if available is not None and needed > available:
        msg = (
            f"a build of {onnx!r} takes about {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB are available"
        )
        hint = "Build on a machine with more memory: the engine is the same. Or use float16."
        raise UnsupportedError(msg, hint=hint)


def _flag(capabilities: tuple[str, ...]) -> str:
    return f"--compute-capability {','.join(capabilities)}"


def _refuse_flags(options: EngineOptions) -> None:
    for option, flag in LIBRARIES[TENSORRT_RTX].needs_driver.items():
        if getattr(options, option):
            msg = f"{_TITLE} needs a CUDA driver to build with {flag}"
            raise UnsupportedError(msg, hint=f"Leave {flag} out: each adapter has its own engine.")
    for_tensorrt = {
        "--version-compatible": options.version_compatible,
        "--hardware-compatible": options.hardware_compatibility != "none",
    }
    for flag, wanted in for_tensorrt.items():
        if wanted:
            msg = f"{flag} is for TensorRT: {_TITLE} builds for its own release"
            raise UsageError(msg, hint=f"Leave {flag} out; name GPUs with --compute-capability.")
