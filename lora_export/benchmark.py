"""An old place; see docs/stability.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.deprecated_imports import forward_names

if TYPE_CHECKING:
    from lora_export import Benchmark, bench

    __all__ = ["Benchmark", "bench"]
else:
    __getattr__ = forward_names(__name__, "lora_export")
