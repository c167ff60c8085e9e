"""Plans judged by TensorRT for RTX before they are loaded: valid here, slower here, or invalid.

``IRuntime::getEngineValidity`` reads the header of a plan alone. It returns its judgement and a sum
of diagnostics, each a bit (NVIDIA's developer guide of TensorRT for RTX, "Engine Compatibility").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.libraries import library_of, library_title

if TYPE_CHECKING:
    import tensorrt as trt

    from lora_export.ondevice.trt.api import Log

__all__ = ["require_valid"]


class _Reason(NamedTuple):
    """A diagnostic in words, and what to do about it."""

    text: str
    hint: str


_BUILD: Final = "Build it again: lora-export build OUT --target rtx"
_DRIVER: Final = "Update NVIDIA's driver, or build the engine with an older release."
_REASONS: Final = {
    "VERSION_MISMATCH": _Reason("it was built by another release", f"{_BUILD}."),
    "UNSUPPORTED_CC": _Reason(
        "it was not built for the compute capability of this GPU",
        f"{_BUILD} --compute-capability X.Y, with that of the GPU.",
    ),
    "OLD_CUDA_DRIVER": _Reason("the CUDA driver is too old for it", _DRIVER),
    "OLD_CUDA_RUNTIME": _Reason("the CUDA runtime is too old for it", _DRIVER),
    "INSUFFICIENT_GPU_MEMORY": _Reason(
        "the GPU has too little memory for it", "Close other programs, or use smaller profiles."
    ),
    "MALFORMED_ENGINE": _Reason("it is damaged, or no engine of this library", f"{_BUILD}."),
    "CUDA_ERROR": _Reason(
        "CUDA's driver or runtime is not correctly installed",
        "Does nvidia-smi show the GPU? Install NVIDIA's driver again.",
    ),
}
"""By the member of ``EngineInvalidityDiagnostics``."""

_INVALID: Final = "INVALID"
_SUBOPTIMAL: Final = "SUBOPTIMAL"


def require_valid(runtime: trt.Runtime, plan: Any, log: Log) -> str | None:
    """Require that a plan can be loaded here; return why it may be slow, None if it is not.

    Args:
        runtime: The runtime that is to load it.
        plan: The plan's bytes.
        log: Where the library says what is wrong.

    Raises:
        DeviceError: The library calls it invalid; the message has every reason that it gives.
    """
    judgement, bits = runtime.get_engine_validity(plan)
    if judgement.name not in {_INVALID, _SUBOPTIMAL}:
        return None
    reasons = _reasons(log.module, int(bits))
    said = "; ".join(each.text for each in reasons) or log.last_message()
    if judgement.name == _SUBOPTIMAL:
        return said
    msg = f"{library_title(library_of(log.module))} cannot run the plan here: {said}"
    hint = reasons[0].hint if reasons else _REASONS["CUDA_ERROR"].hint
    raise DeviceError(msg, hint=hint, kind="input")


def _reasons(trt: Any, bits: int) -> list[_Reason]:
    """Return the reasons of a sum of diagnostics; a bit that is not known is shown as a number."""
    found: list[_Reason] = []
    for name, reason in _REASONS.items():
        bit = int(getattr(trt.EngineInvalidityDiagnostics, name))
        if bits & bit:
            found.append(reason)
            bits &= ~bit
    if bits:
        found.append(_Reason(f"diagnostic {bits:#x}, which is not known", f"{_BUILD}."))
    return found
