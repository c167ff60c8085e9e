"""Numbers of a graph as formulas over the sizes of its config.

    hidden            a size                       3*hidden     a product, read from left to right
    hidden/heads      a quotient, always exact     hidden+2     a sum of such terms
    1/sqrt(head_dim)  a float                      eps          a setting that is a float

Integers are exact: a quotient that is none means that the model cannot be built so. Floats are
computed in float64, as transformers does, and cast once to the dtype in the graph.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FLOATS", "NotExactError", "evaluate", "evaluate_float"]

_TERMS: Final = re.compile(r"([+-]?)([^+-]+)")
_FACTORS: Final = re.compile(r"([*/]?)([a-z_]+|\d+)")
_FLOAT: Final = re.compile(r"([^()]*)\((.+)\)")

FLOATS: Final[dict[str, Callable[[int], float]]] = {
    "1/sqrt": lambda value: 1 / math.sqrt(value),
    "sqrt": math.sqrt,
    "1/": lambda value: 1 / value,
    "float": float,
}
"""What a float may be of an integer formula."""


class NotExactError(ValueError):
    """A quotient is no integer, or a name or a formula is not known."""


def evaluate(formula: str, sizes: Mapping[str, int | float]) -> int:
    """Return the integer that `formula` is for `sizes`.

    Raises:
        NotExactError: A quotient is not exact, or the formula cannot be read.
    """
    total = 0
    if "".join("".join(each) for each in _TERMS.findall(formula)) != formula or not formula:
        msg = f"{formula!r} is no formula"
        raise NotExactError(msg)
    for sign, term in _TERMS.findall(formula):
        value = _term(term, sizes)
        total += -value if sign == "-" else value
    return total


def _term(term: str, sizes: Mapping[str, int | float]) -> int:
    factors = _FACTORS.findall(term)
    if "".join("".join(each) for each in factors) != term or not factors or factors[0][0]:
        msg = f"{term!r} is no product"
        raise NotExactError(msg)
    value = 1
    for operation, name in factors:
        factor = int(name) if name.isdigit() else sizes.get(name)
        if not isinstance(factor, int):
            msg = f"{name!r} is no size"
            raise NotExactError(msg)
        if operation != "/":
            value *= factor
        elif factor <= 0 or value % factor:
            msg = f"{term} is not a whole number: {value} / {factor}"
            raise NotExactError(msg)
        else:
            value //= factor
    return value


def evaluate_float(formula: str, sizes: Mapping[str, int | float]) -> float:
    """Return the float that `formula` is for `sizes`.

    Raises:
        NotExactError: It is not known.
    """
    match = _FLOAT.fullmatch(formula)
    if match is None:
        value = sizes.get(formula)
        if not isinstance(value, float):
            msg = f"{formula!r} is no float"
            raise NotExactError(msg)
        return value
    function = FLOATS.get(match[1])
    number = evaluate(match[2], sizes)
    if function is None or number <= 0:
        msg = f"{formula!r} is no float for {number}"
        raise NotExactError(msg)
    return function(number)
