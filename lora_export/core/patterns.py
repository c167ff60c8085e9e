r"""Regular expressions from untrusted files, bounded before they are matched.

Python's engine tries one way after the other to match a pattern. How many there are at most is told
from the pattern alone:

    of a sequence       the product of its parts'
    of alternatives     their sum
    of ``x*``           `REPEATED`, as if names had so many characters; of ``x?`` two

A repeated group has no such number: ``(a+)+`` doubles it with every character.
"""

from __future__ import annotations

import math
import re
from typing import Final

__all__ = ["REPEATED", "ways"]

REPEATED: Final = 100
"""The ways of one character that is repeated without a bound."""

_UNBOUNDED: Final = frozenset("*+{")
_QUANTIFIED_GROUP: Final = re.compile(r"\)\s*[*+?{]")
_ESCAPED: Final = re.compile(r"\\.", re.DOTALL)
_CLASS: Final = re.compile(r"\[\^?\]?[^\]]*\]")
_OPENERS: Final = re.compile(r"\(\?(?:P<\w+>|:|=|!|<=|<!)")


def ways(pattern: str) -> float:
    r"""Return how many ways there are at most to match a pattern; infinity where that is not known.

    >>> ways(r"q_proj|(k|v)_proj\.(\d+)"), ways(".*experts.*(w1|w3)")
    (201, 20000)
    >>> ways("(a+)+b"), ways("(?i)a")
    (inf, inf)
    """
    plain = _CLASS.sub("x", _ESCAPED.sub("x", pattern))
    plain = _OPENERS.sub("(", plain)
    if _QUANTIFIED_GROUP.search(plain) or "(?" in plain:
        return math.inf
    open_groups: list[tuple[int, int]] = []  # what stood before each: the sum and the product
    total, product = 0, 1
    for letter in plain:
        if letter == "(":
            open_groups.append((total, product))
            total, product = 0, 1
        elif letter == ")" and open_groups:
            inner = total + product
            total, product = open_groups.pop()
            product *= inner
        elif letter == "|":
            total, product = total + product, 1
        elif letter in _UNBOUNDED:
            product *= REPEATED
        elif letter == "?":
            product *= 2
    return total + product
