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
    "AdapterSpec": "commands.recipe",
    "CombineSpec": "commands.recipe",
    "LoraExportError": "core.errors",
    "Outcome": "commands.outcome",
    "Recipe": "commands.recipe",
    "add": "commands.add",
    "convert": "commands.convert",
    "load_recipe": "commands.recipe",
    "merge_and_build": "commands.build",
    "merge_checkpoint": "commands.merge",
    "remove": "commands.remove",
    "unmerge_checkpoint": "commands.merge",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    home = _HOMES.get(name)
    if home is None:
        msg = f"module 'lora_export' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"lora_export.{home}"), name)
