"""An old place; see docs/stability.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.deprecated_imports import forward_names

if TYPE_CHECKING:
    from lora_export.exports.adapter_companions import copy_companions

    __all__ = ["copy_companions"]
else:
    __getattr__ = forward_names(__name__, "lora_export.exports.adapter_companions")
