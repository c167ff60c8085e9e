"""Modules that have moved: the old place goes on working for one release, with a warning.

A module at an old place has one line of code, ``__getattr__ = forward(__name__, NEW)``. It imports
nothing until a name is taken from it. docs/stability.md says how long it stays.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["forward_names"]


def forward_names(old: str, new: str) -> Callable[[str], object]:
    """Return the ``__getattr__`` of the module `old`, which takes its names from the module `new`.

    Each access warns with a `DeprecationWarning` that names the new place.
    """

    def get(name: str) -> object:
        missing = object()
        value = missing
        if not name.startswith("__"):  # Python's own names are never forwarded
            value = getattr(importlib.import_module(new), name, missing)
        if value is missing:
            msg = f"module {old!r} has no attribute {name!r}"
            raise AttributeError(msg)
        warnings.warn(
            f"{old} is gone in the next release: use {new}.{name} in place of {old}.{name}",
            DeprecationWarning,
            stacklevel=2,
        )
        return value

    return get
