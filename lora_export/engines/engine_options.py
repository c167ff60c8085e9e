"""The user's options for the engines of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.core.targets import RTX
from lora_export.ondevice.trt.libraries import TENSORRT, TENSORRT_RTX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.engines.profiles import AxisRange

__all__ = ["EngineOptions", "library_for"]


@dataclass(frozen=True)
class EngineOptions:
    """The user's options for the engines of an export; see `BuildSettings` for most of them.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``bf16``: what the export has to be in; None takes it as
            it is.
        profiles: What is said of the axes; see `lora_export.engines.profiles`.
        refit: Whether the weights that the adapters change may be changed afterwards.
        library: The library that builds: ``tensorrt`` or ``tensorrt-rtx``.
        compute_capabilities: Of TensorRT for RTX: the GPUs that the engines are for, each as
            ``8.9``; empty for its default, or for those of the target.
    """

    precision: str | None = None
    profiles: Sequence[Mapping[str, AxisRange]] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    strip_weights: bool = False
    refit: bool = False
    library: str = TENSORRT
    compute_capabilities: tuple[str, ...] = ()


def library_for(target: str, builder: str | None) -> str:
    """Return the library that builds for a target: `builder`, or the one that is usual for it.

    >>> library_for("rtx", None), library_for("l4", None), library_for("rtx-ada", "tensorrt-rtx")
    ('tensorrt-rtx', 'tensorrt', 'tensorrt-rtx')
    """
    return builder or (TENSORRT_RTX if target == RTX else TENSORRT)
