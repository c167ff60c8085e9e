"""Numbers with their unit, for people."""

from __future__ import annotations

from typing import Final

__all__ = ["size"]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_STEP: Final = 1000


def size(count_bytes: int) -> str:
    """Return a number of bytes with a decimal unit.

    >>> size(999), size(90_868_376)
    ('999 B', '90.9 MB')
    """
    value, unit = float(count_bytes), 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{count_bytes} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
