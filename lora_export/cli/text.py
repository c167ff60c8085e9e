"""Plain text for people: aligned rows, sizes with units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.device.text import aligned

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["aligned", "first_few", "size"]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_STEP: Final = 1000
_SHOWN: Final = 8


def size(count_bytes: int) -> str:
    """Return a number of bytes with a decimal unit.

    >>> size(999), size(90_868_376)
    ('999 B', '90.9 MB')
    """
    value, unit = float(count_bytes), 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{count_bytes} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def first_few(lines: Sequence[str], shown: int = _SHOWN) -> list[str]:
    """Return the first lines, and how many more there are.

    >>> first_few(["a", "b", "c"], 2)
    ['a', 'b', '… and 1 more']
    """
    more = [f"… and {len(lines) - shown} more"] if len(lines) > shown else []
    return [*lines[:shown], *more]
