r"""Regular expressions from untrusted files, bounded before they are matched.

Python's engine tries one way after the other to match a pattern. How many there are at most is told
from the pattern alone:

    of a sequence       the product of its parts'
    of alternatives     their sum
    of ``x*``           `REPEATED`, as if names had so many characters; of ``x?`` two

A repeated group has no such number: ``(a+)+`` doubles it with every character. A name of more than
`REPEATED` characters takes more steps, by the third power of its length for three repetitions; what
all patterns and all names take together is bounded too.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["REPEATED", "WAYS_LIMIT", "PatternError", "are_affordable", "compiled", "ways"]

REPEATED: Final = 100
"""The ways of one character that is repeated without a bound."""

_CALL: Final = 100
"""The cost of one call of the engine, in steps."""

_STEPS_LIMIT: Final = 2e9
"""A few seconds."""

WAYS_LIMIT: Final = 16 * REPEATED**3
"""The largest number of ways of an expression that is matched without a clock."""

_TEXT_LIMIT: Final = 1 << 20
"""The largest number of characters of all patterns; compiling them takes a few seconds."""

_CACHED: Final = 20_000
_UNBOUNDED: Final = frozenset("*+{")
_QUANTIFIED_GROUP: Final = re.compile(r"\)\s*[*+?{]")
_ESCAPED: Final = re.compile(r"\\.", re.DOTALL)
_CLASS: Final = re.compile(r"\[\^?\]?[^\]]*\]")
_OPENERS: Final = re.compile(r"\(\?(?:P<\w+>|:|=|!|<=|<!)")


class PatternError(ValueError):
    """A text that is not a regular expression; the message says why."""


@functools.lru_cache(maxsize=_CACHED)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a stranger's regular expression, compiled.

    Raises:
        PatternError: It is none, or too large or too deeply nested for the engine.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what Python may read otherwise one day
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(" ".join(str(error).split())) from error


def are_affordable(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Whether every pattern can be compiled and matched with every name within a few seconds."""
    patterns = tuple(patterns)
    if sum(map(len, patterns)) > _TEXT_LIMIT:
        return False
    lengths = sum(max(1.0, len(name) / REPEATED) ** 3 for name in names)
    return lengths * sum(_CALL + ways(pattern) for pattern in patterns) <= _STEPS_LIMIT


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
