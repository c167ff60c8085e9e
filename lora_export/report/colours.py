"""One scale of colours for numbers from 0 to 1, with a text colour that is readable on each."""

from __future__ import annotations

from typing import Final

__all__ = ["STOPS", "colour", "ink_on"]

STOPS: Final = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Dark to bright, evenly in lightness (the colours of viridis at 0, 1/4, … 1)."""

_WHITE: Final = (255, 255, 255)
_BLACK: Final = (0, 0, 0)
_LINEAR: Final = 0.04045


def colour(value: float) -> str:
    """Return the colour of a number, between the stops.

    >>> colour(0), colour(1)
    ('rgb(68,1,84)', 'rgb(253,231,37)')
    """
    return _text(_mixed(value))


def ink_on(value: float) -> str:
    """Return black or white: what has the larger contrast with the colour of `value` (WCAG 2)."""
    own = _luminance(_mixed(value))
    darker = (own + 0.05) / (_luminance(_BLACK) + 0.05)
    return _text(_BLACK if darker > (_luminance(_WHITE) + 0.05) / (own + 0.05) else _WHITE)


def _mixed(value: float) -> tuple[int, ...]:
    place = min(max(value, 0.0), 1.0) * (len(STOPS) - 1)
    low = min(int(place), len(STOPS) - 2)
    share = place - low
    return tuple(
        round(a + (b - a) * share) for a, b in zip(STOPS[low], STOPS[low + 1], strict=True)
    )


def _text(parts: tuple[int, ...]) -> str:
    return f"rgb({','.join(map(str, parts))})"


def _luminance(parts: tuple[int, ...]) -> float:
    """Return the relative luminance of sRGB."""
    shares = [part / 255 for part in parts]
    linear = [s / 12.92 if s <= _LINEAR else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
