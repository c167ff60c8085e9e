"""Suggestions for a word that is not known: the nearest one, where it is close, and all."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` is probably a misspelling of.

    >>> nearest("verfy", ["verify", "refit"]), nearest("foo", ["jetson-thor"])
    ('verify', None)
    """
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest word, where one is close, and those that are known.

    >>> did_you_mean("l40", ["l4", "a10"]), did_you_mean("foo", ["l4", "a10"])
    ("Did you mean 'l4'? Known: l4, a10.", 'Known: l4, a10.')
    """
    words = list(known)
    near = nearest(word, words)
    start = "" if near is None else f"Did you mean {near!r}? "
    return f"{start}Known: {', '.join(words)}."
