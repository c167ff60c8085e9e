"""An engine loaded from the bytes of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.engine_validity import require_valid
from lora_export.ondevice.trt.libraries import library_of, library_row

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorrt as trt

    from lora_export.ondevice.trt.api import Log

__all__ = ["deserialize"]


def deserialize(
    plan: Any,
    log: Log,
    *,
    version_compatible: bool = False,
    tell: Callable[[str], None] | None = None,
) -> trt.ICudaEngine:
    """Return the engine of a plan.

    Args:
        plan: The plan's bytes.
        log: Where TensorRT says what is wrong.
        version_compatible: Whether the plan was built to be loaded by later versions: it brings
            code of its own, which is allowed then.
        tell: Told where the library expects it to be slow here.

    Raises:
        DeviceError: The plan is damaged, or of another version or GPU.
    """
    trt, library = log.module, library_of(log.module)
    try:
        runtime = trt.Runtime(log.logger)
        if version_compatible:
            runtime.engine_host_code_allowed = True
        if library_row(library).compiles_on_load:
            slow = require_valid(runtime, plan, log)
            if slow is not None and tell is not None:
                tell(f"the engine may run slowly here: {slow}")
        engine = runtime.deserialize_cuda_engine(plan)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _unloadable(library, log) from error
    if engine is None:
        raise _unloadable(library, log)
    return engine


def _unloadable(library: str, log: Log) -> DeviceError:
    msg = f"{library_row(library).title} cannot load the plan: {log.last_message()}"
    return DeviceError(msg, hint="Build it again.", kind="input")
