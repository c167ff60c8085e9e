"""Plain text for people: aligned rows, sizes with units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.units import size
from lora_export.ondevice.text_table import aligned

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["aligned", "first_few", "size"]

_SHOWN: Final = 8


def first_few(lines: Sequence[str], shown: int = _SHOWN) -> list[str]:
    """Return the first lines, and how many more there are.

    >>> first_few(["a", "b", "c"], 2)
    ['a', 'b', '… and 1 more']
    """
    more = [f"… and {len(lines) - shown} more"] if len(lines) > shown else []
    return [*lines[:shown], *more]
