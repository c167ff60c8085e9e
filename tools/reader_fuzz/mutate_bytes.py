"""Changes to bytes: bits, numbers, blocks, and words of a format."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from tools.reader_fuzz.reader import Mutator

__all__ = ["EXTREMES", "mutate_bytes", "with_words"]

EXTREMES: Final = tuple(
    sorted({
        value
        for bits in (7, 8, 15, 16, 31, 32, 33, 40, 48, 62, 63, 64)
        for value in ((1 << bits) - 1, 1 << bits, (1 << bits) + 1)
    } | {0, 1, 2, 3, 10**12})
)  # fmt: skip
"""Numbers at which sizes, counts and products of them overflow."""

_WIDTHS: Final = (1, 2, 4, 8)
_EDGE_BYTES: Final = 256
_BLOCK_BYTES: Final = 64
_MOST_CHANGES: Final = 4


def with_words(words: Sequence[bytes]) -> Mutator:
    """Return `mutate_bytes` with the words of a format."""
    return partial(_mutate, words=tuple(words))


def mutate_bytes(chance: Random, data: bytes) -> bytes:
    """Return `data` with a few changes anywhere, most of them near its ends."""
    return _mutate(chance, data)


def _mutate(chance: Random, data: bytes, words: tuple[bytes, ...] = ()) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, _MOST_CHANGES)):
        if words and not chance.randrange(3):
            _word(chance, changed, chance.choice(words))
        else:
            chance.choice(_CHANGES)(chance, changed)
    return bytes(changed)


def _place(chance: Random, length: int) -> int:
    """Return a position: a third each near the beginning, near the end, and anywhere."""
    if length == 0:
        return 0
    where = chance.randrange(3)
    if where == 0:
        return chance.randrange(min(length, _EDGE_BYTES))
    if where == 1:
        return length - 1 - chance.randrange(min(length, _EDGE_BYTES))
    return chance.randrange(length)


def _flip(chance: Random, data: bytearray) -> None:
    if data:
        data[_place(chance, len(data))] ^= 1 << chance.randrange(8)


def _replace(chance: Random, data: bytearray) -> None:
    if data:
        data[_place(chance, len(data))] = chance.choice(
            (0, 0xFF, 0x7F, 0x80, chance.randrange(256))
        )


def _number(chance: Random, data: bytearray) -> None:
    width = chance.choice(_WIDTHS)
    value = chance.choice(EXTREMES) if chance.randrange(3) else chance.randrange(1000)
    place = _place(chance, len(data))
    if chance.randrange(2):
        place -= place % width
    order: Callable[..., bytes] = (value % (1 << 8 * width)).to_bytes
    data[place : place + width] = order(width, chance.choice(("little", "little", "big")))


def _truncate(chance: Random, data: bytearray) -> None:
    del data[_place(chance, len(data)) :]


def _insert(chance: Random, data: bytearray) -> None:
    place = _place(chance, len(data))
    data[place:place] = chance.randbytes(chance.randint(1, _BLOCK_BYTES))


def _delete(chance: Random, data: bytearray) -> None:
    place = _place(chance, len(data))
    del data[place : place + chance.randint(1, _BLOCK_BYTES)]


def _repeat(chance: Random, data: bytearray) -> None:
    start = _place(chance, len(data))
    block = bytes(data[start : start + chance.randint(1, _BLOCK_BYTES)])
    place = _place(chance, len(data))
    data[place:place] = block * chance.choice((1, 1, 2, 50))


def _swap(chance: Random, data: bytearray) -> None:
    one, other = _place(chance, len(data)), _place(chance, len(data))
    size = chance.randint(1, _BLOCK_BYTES)
    first, second = bytes(data[one : one + size]), bytes(data[other : other + size])
    if len(first) == len(second) == size:
        data[one : one + size] = second
        data[other : other + size] = first


def _word(chance: Random, data: bytearray, word: bytes) -> None:
    place = _place(chance, len(data))
    end = place if chance.randrange(2) else place + len(word)
    data[place:end] = word


_CHANGES: Final = (
    _flip, _flip, _replace, _number, _number, _truncate, _insert, _delete, _repeat, _swap,
)  # fmt: skip
