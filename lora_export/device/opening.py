"""An old place; see docs/stability.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.deprecated_imports import forward_names

if TYPE_CHECKING:
    from lora_export.ondevice.trt.plan_opening import open_live

    __all__ = ["open_live"]
else:
    __getattr__ = forward_names(__name__, "lora_export.ondevice.trt.plan_opening")
