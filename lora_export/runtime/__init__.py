"""Runtimes: graphs and models that can be run, and sessions over an export.

    from lora_export.runtime import open_export

The public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__all__ = ["Session", "open_export"]

_HOME: Final = "lora_export.runtime.session"


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in __all__:
        msg = f"module 'lora_export.runtime' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME), name)
