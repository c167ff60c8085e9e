"""Something that happens with a probability."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

__all__ = ["chance"]


def chance(random: Random, share: float) -> bool:
    """Return True with the probability `share`."""
    return random.random() < share
