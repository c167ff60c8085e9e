"""Layers that a model repeats: their kinds, and those of which a graph has to be traced."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LEAST_LEFT_OUT", "Repeat", "layers_to_trace"]

LEAST_LEFT_OUT: Final = 2
"""The fewest layers that are worth leaving out of a trace."""


@dataclass(frozen=True)
class Repeat:
    """A list of layers of a few kinds.

    Attributes:
        path: The list's name in the model (``roberta.encoder.layer``).
        kinds: Of each layer of the model, its kind: the number of the first layer that is like it.
        kept: The numbers of the layers that are traced, in order.
    """

    path: str
    kinds: tuple[int, ...]
    kept: tuple[int, ...]


def layers_to_trace(kinds: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of the layers that have to be traced."""
    inner = range(1, len(kinds) - 1)
    kept = {0, len(kinds) - 1} if kinds else set()
    first = {kinds[number]: number for number in reversed(inner)}
    last = {kinds[number]: number for number in inner}
    kept |= {*first.values(), *last.values()}
    while True:
        chosen = [kinds[number] for number in sorted(kept) if number in inner]
        seen = set(itertools.pairwise(chosen))
        unseen = [{n - 1, n} for n in inner[1:] if (kinds[n - 1], kinds[n]) not in seen]
        if not unseen:
            return tuple(sorted(kept))
        kept |= min(unseen, key=lambda pair: len(pair - kept))
