"""Lists of names in messages, cut to the first few."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["first_few", "first_names"]


def first_few(lines: Sequence[str], shown: int = 8) -> list[str]:
    """Return the first lines, and how many more there are.

    >>> first_few(["a", "b", "c"], 2)
    ['a', 'b', '… and 1 more']
    """
    more = [f"… and {len(lines) - shown} more"] if len(lines) > shown else []
    return [*lines[:shown], *more]


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, quoted, with an ellipsis for the rest.

    >>> first_names(["q_proj", "k_proj", "v_proj", "o_proj"])
    "'q_proj', 'k_proj', 'v_proj', …"
    """
    return ", ".join([*map(repr, names[:most]), *(["…"] if len(names) > most else [])])
