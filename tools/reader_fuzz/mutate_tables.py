"""Changes to tables of settings: values of other types, keys twice, deep nesting.

JSON is parsed into lists of pairs, so that a key can be there twice, and written again by `encode`,
which also writes what no encoder would: `Raw` text. YAML takes most of it, too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tools.reader_fuzz.mutate_bytes import EXTREMES, mutate_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

__all__ = ["ODD", "Pairs", "Raw", "decode", "encode", "mutate_json", "mutate_table"]


class Pairs(list[tuple[str, Any]]):
    """A table whose keys may be there twice."""


class Raw(str):
    """Text that is written as it is."""

    __slots__ = ()


_Place: TypeAlias = "tuple[list[Any], int]"
"""A list or table, and an index into it."""

_DEEP: Final = 3000
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, -0.0, "", "a", [], Pairs(), [None], [[]], [1, "a"],
    Pairs([("", None)]), Pairs([("a", 1)]), "\0", "../../etc/passwd", "/etc/passwd", "a" * 300,
    "a/" * 200, "\ud800", "\u202e\x1b[31m", "ü", "NaN", "1", "1e999", 2**31, 2**63, 2**64,
    -(2**63), 10**25,
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e400"), Raw("-0"), Raw("1" * 5000),
    Raw("[" * _DEEP + "]" * _DEEP), Raw('{"a":' * _DEEP + "1" + "}" * _DEEP), Raw(""),
    Raw('"\\ud800"'), "2001-99-99", "1.0.0", "base", "int8", "float32",
)  # fmt: skip
"""Values that a setting may have instead of its own."""


def mutate_json(chance: Random, data: bytes) -> bytes:
    """Return JSON with a few values or keys changed; bytes are changed where it is none."""
    if not chance.randrange(10):
        return mutate_bytes(chance, data)
    table = mutate_table(chance, decode(data))
    return encode(table).encode("utf-8", "surrogatepass")


def decode(data: bytes) -> Any:
    """Return the value that JSON states, tables as `Pairs`."""
    return json.loads(data, object_pairs_hook=Pairs)


def encode(value: Any) -> str:
    """Return JSON of values with `Pairs` and `Raw` in them."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        inner = ",".join(f"{encode(key)}:{encode(each)}" for key, each in value)
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(encode, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def mutate_table(chance: Random, table: Any) -> Any:
    """Return a value of JSON with a few parts changed; mutates `table`."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(table))
        if not places:
            return _odd(chance)
        holder, index = chance.choice(places)
        _change(chance, holder, index, places)
    return table


def _places(table: Any) -> Iterator[_Place]:
    """Yield every list or table below a value, with each index into it."""
    waiting = [table]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, list):
            continue
        for index in range(len(each)):
            yield each, index
            waiting.append(_at(each, index))


def _at(holder: list[Any], index: int) -> Any:
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _put(holder: list[Any], index: int, value: Any) -> None:
    holder[index] = (holder[index][0], value) if isinstance(holder, Pairs) else value


def _change(chance: Random, holder: list[Any], index: int, places: Sequence[_Place]) -> None:
    """Change one entry of a list or table; mutates `holder`."""
    kind, value = chance.randrange(10), _at(holder, index)
    if kind == 0:
        del holder[index]
    elif kind == 1:
        holder.insert(index, holder[index])
    elif kind == 2 and isinstance(holder, Pairs):  # noqa: PLR2004
        others = [each[at][0] for each, at in places if isinstance(each, Pairs)]
        key = chance.choice((chance.choice(others), *_around(holder[index][0])))
        holder[index] = (key, value)
    elif kind == 3:  # noqa: PLR2004
        _put(holder, index, _copy(_at(*chance.choice(places))))
    elif kind == 4:  # noqa: PLR2004
        _put(holder, index, chance.choice(([value], Pairs([("a", value)]))))
    elif kind <= 6 and isinstance(value, int) and not isinstance(value, bool):  # noqa: PLR2004
        near = (value + 1, value - 1, -value, float(value), str(value))
        _put(holder, index, chance.choice((*near, chance.choice(EXTREMES))))
    elif kind <= 6 and isinstance(value, str):  # noqa: PLR2004
        _put(holder, index, chance.choice(_around(value)))
    else:
        _put(holder, index, _odd(chance))


def _around(text: str) -> tuple[str, ...]:
    """Return texts that are nearly another."""
    return (
        f"{text}x", text[:-1], text.upper(), f"{text}\0", f"../{text}", f"/{text}", f"{text}\n", "",
        f"{text}\ud800", text * 100,
    )  # fmt: skip


def _odd(chance: Random) -> Any:
    return _copy(chance.choice(ODD))


def _copy(value: Any) -> Any:
    """Return a value whose lists are others; nothing is in the place of one that contains it."""
    if isinstance(value, Pairs):
        return Pairs([(key, _copy(each)) for key, each in value])
    return [_copy(each) for each in value] if isinstance(value, list) else value
