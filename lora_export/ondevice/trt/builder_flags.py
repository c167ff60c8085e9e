"""Build settings applied to the builder's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import version_of
from lora_export.ondevice.trt.libraries import library_of, library_row
from lora_export.ondevice.trt.versions import HARDWARE_LEVELS, has, require_level

if TYPE_CHECKING:
    import tensorrt as trt

    from lora_export.ondevice.trt.build_settings import BuildSettings

__all__ = ["set_flags"]


def set_flags(
    trt: Any,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    settings: BuildSettings,
) -> list[str]:
    """Apply `settings` to the builder; return the names of the flags that it has now.

    Args:
        trt: The library's module.
        network: The parsed graph.
        config: The configuration of the build.
        settings: What is asked for.

    Raises:
        DeviceError: A weight is not known, or this version lacks what is asked for.
    """
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
    _set_refit(trt, network, config, settings)
    if not library_row(library_of(trt)).builds_ahead:
        _set_hardware(trt, config, settings.hardware_compatibility)
    table = {
        "TF32": trt.BuilderFlag.TF32,
        "VERSION_COMPATIBLE": trt.BuilderFlag.VERSION_COMPATIBLE,
        "STRIP_PLAN": trt.BuilderFlag.STRIP_PLAN,
        "REFIT_INDIVIDUAL": trt.BuilderFlag.REFIT_INDIVIDUAL,
        "REFIT_IDENTICAL": trt.BuilderFlag.REFIT_IDENTICAL,
    }
    return ["STRONGLY_TYPED", *(name for name, flag in table.items() if config.get_flag(flag))]


def _set_refit(
    trt: Any,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    settings: BuildSettings,
) -> None:
    """Mark the weights that may be changed afterwards."""
    if settings.refittable:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        for name in settings.refittable:
            if not network.mark_weights_refittable(name):
                msg = f"TensorRT has no refittable weight {name!r}"
                raise DeviceError(msg, hint="Is it a weight of this graph?", kind="unsupported")
    elif settings.strip_weights:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _set_hardware(trt: Any, config: trt.IBuilderConfig, level: str) -> None:
    """Set which other GPUs may load the plan.

    Raises:
        DeviceError: This version of TensorRT has no such level.
    """
    version = version_of(trt)
    require_level(version, level)
    levels = {
        "NONE": trt.HardwareCompatibilityLevel.NONE,
        "AMPERE_PLUS": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }
    if has(version, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"):
        levels["SAME_COMPUTE_CAPABILITY"] = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    config.hardware_compatibility_level = levels[HARDWARE_LEVELS[level].member]
