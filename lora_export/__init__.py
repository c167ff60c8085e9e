"""Ship LoRA adapters: merged or swappable ONNX graphs that provably compute base + adapter.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__all__ = [
    "AdapterSpec",
    "CombineSpec",
    "LoraExportError",
    "Outcome",
    "Recipe",
    "__version__",
    "add",
    "convert",
    "load_recipe",
    "merge_and_build",
    "merge_checkpoint",
    "remove",
    "unmerge_checkpoint",
]

__version__ = "0.1.0.dev0"

_HOMES: Final = {
    "AdapterSpec": "recipe",
    "CombineSpec": "recipe",
    "LoraExportError": "base.errors",
    "Outcome": "steps",
    "Recipe": "recipe",
    "add": "maintenance",
    "convert": "conversion",
    "load_recipe": "recipe",
    "merge_and_build": "pipeline",
    "merge_checkpoint": "merging",
    "remove": "maintenance",
    "unmerge_checkpoint": "merging",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'lora_export' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"lora_export.{home}"), name)
