"""A value from somebody's file as a message shows it: on one line, of bounded length."""

from __future__ import annotations

import reprlib
from typing import Final

__all__ = ["first_line", "shown"]

_LIMIT: Final = 80
_INTEGER_LIMIT_BITS: Final = 256


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = _LIMIT

    def repr_int(self, x: int, level: int) -> str:
        """Return an integer; Python refuses to write one of thousands of digits."""
        if x.bit_length() > _INTEGER_LIMIT_BITS:
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)


_SHORT: Final = _Short()


def shown(value: object, limit: int = _LIMIT) -> str:
    """Return `value` as Python writes it, cut in the middle to `limit` characters.

    Args:
        value: What JSON or YAML holds, of any size and depth.
        limit: The largest number of characters.
    """
    text = _SHORT.repr(value)
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of what a library's error says, cut to `limit` characters."""
    lines = [line.strip() for line in str(error)[: 10 * limit].splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
