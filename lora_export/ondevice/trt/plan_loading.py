"""An engine loaded from the bytes of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.ondevice.device_errors import DeviceError

if TYPE_CHECKING:
    import tensorrt as trt

    from lora_export.ondevice.trt.api import Log

__all__ = ["deserialize"]


def deserialize(plan: Any, log: Log, *, version_compatible: bool = False) -> trt.ICudaEngine:
    """Return the engine of a plan.

    Args:
        plan: The plan's bytes.
        log: Where TensorRT says what is wrong.
        version_compatible: Whether the plan was built to be loaded by later versions: it brings
            code of its own, which is allowed then.

    Raises:
        DeviceError: The plan is damaged, or of another version or GPU.
    """
    trt = log.module
    try:
        runtime = trt.Runtime(log.logger)
        if version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
    except (RuntimeError, TypeError, ValueError) as error:
        msg = f"TensorRT cannot load the plan: {log.last()}"
        raise DeviceError(msg, hint="Build it again.", kind="input") from error
    if engine is None:
        msg = f"TensorRT cannot load the plan: {log.last()}"
        raise DeviceError(msg, hint="Build it again.", kind="input")
    return engine
