"""Compute capabilities of an engine that is built ahead of time, by TensorRT for RTX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.libraries import LIBRARIES, library_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tensorrt as trt

__all__ = ["require_capabilities", "set_capabilities"]


def require_capabilities(library: str, capabilities: Sequence[str]) -> None:
    """Require that a library builds for compute capabilities.

    Args:
        library: A library that builds ahead of time.
        capabilities: Each as ``8.9``.

    Raises:
        DeviceError: There is no such compute capability, or the library does not know it.
    """
    known = LIBRARIES[library].capabilities
    for each in capabilities:
        if each not in known:
            msg = f"{LIBRARIES[library].title} builds for no compute capability {each!r}"
            raise DeviceError(msg, hint=f"Supported: {', '.join(known)}.", kind="usage")


def set_capabilities(trt: Any, config: trt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Name the GPUs that the engine is for; none leaves the library's default.

    Raises:
        DeviceError: See `require_capabilities`.
    """
    library = library_of(trt)
    require_capabilities(library, capabilities)
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, each in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, LIBRARIES[library].capabilities[each])
        config.set_compute_capability(member, index)
