"""Values that no setting expects, and tables with one of them somewhere: for every text reader."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

__all__ = ["ODD", "mutated", "with_each"]

_DEEP: Final = 40


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: Final[dict[str, Any]] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative": -1,
    "huge": 2**70,
    "enormous": 10**400,
    "fraction": 1.5,
    "infinite": math.inf,
    "no number": math.nan,
    "empty text": "",
    "text": "x",
    "digits": "16",
    "long text": "x" * 100_000,
    "lines": "a\nb\x1b[31m\u202e",
    "pattern": "(a+)+$",
    "no pattern": "(",
    "empty list": [],
    "list of null": [None],
    "list of numbers": [1, 2**70],
    "list of lists": [[]],
    "list of texts": ["x", "x"],
    "empty table": {},
    "table": {"a": {}},
    "table of null": {"0": None},
    "table of lists": {"x": [2**70]},
    "nested": _nested(_DEEP),
}
"""Values by what they are; JSON and YAML can hold all of them."""


def with_each(table: dict[str, Any], keys: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield ``(what was done, the table)``: each key gets each of `ODD`, one at a time."""
    for key in keys or list(table):
        for what, value in ODD.items():
            yield f"{key}: {what}", {**table, key: value}


def mutated(table: dict[str, Any], random_numbers: random.Random) -> dict[str, Any]:
    """Return a copy of `table` with one to three values, at any depth, odd, absent or moved."""
    result = copy.deepcopy(table)
    for _ in range(random_numbers.randint(1, 3)):
        if not result:
            return result
        holder, key = random_numbers.choice(list(_places(result)))
        action = random_numbers.random()
        if action < 0.15:
            del holder[key]
        elif action < 0.3:
            _, other = random_numbers.choice(list(_places(result)))
            holder[key] = copy.deepcopy(result.get(other) if isinstance(other, str) else other)
        else:
            holder[key] = copy.deepcopy(random_numbers.choice(list(ODD.values())))
    return result


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    rows = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(rows):
        yield value, key
        if isinstance(each, dict | list):
            yield from _places(each)
