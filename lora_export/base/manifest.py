"""An old place; see docs/stability.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.deprecated_imports import forward_names

if TYPE_CHECKING:
    from lora_export.core.manifest import read_manifest

    __all__ = ["read_manifest"]
else:
    __getattr__ = forward_names(__name__, "lora_export.core.manifest")
