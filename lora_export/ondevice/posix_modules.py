"""Modules of the standard library that Windows does not have."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["posix_module"]


def posix_module(name: str) -> Any:
    """Return a module of the standard library; None where the system does not have it.

    Args:
        name: Its name, such as ``fcntl`` or ``resource``.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
