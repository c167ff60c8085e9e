"""Loaded adapters within a byte budget; the least recently used goes first.

An instance of a Python-backend model runs one batch at a time: there is no lock, and the value in
use is the newest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["ByteBudget", "TooLargeError"]

Value = TypeVar("Value")


class TooLargeError(Exception):
    """A value is larger than the whole budget."""


class ByteBudget(Generic[Value]):
    """Values by key, loaded at their first use.

    Args:
        limit_bytes: What all values together may take; None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._values: OrderedDict[Hashable, tuple[int, Value]] = OrderedDict()
        self.used_bytes = 0
        self.loads = 0

    def get(self, key: Hashable, nbytes: int, load: Callable[[], Value]) -> Value:
        """Return the value of `key`; room is made before it is loaded.

        Raises:
            TooLargeError: It is larger than the budget.
        """
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][1]
        if self._limit_bytes is not None:
            if nbytes > self._limit_bytes:
                msg = f"it takes {nbytes} bytes, cache_bytes is {self._limit_bytes}"
                raise TooLargeError(msg)
            while self.used_bytes + nbytes > self._limit_bytes:
                self.drop(next(iter(self._values)))
        value = load()
        self._values[key] = (nbytes, value)
        self.used_bytes += nbytes
        self.loads += 1
        return value

    def keep(self, keys: set[Hashable]) -> None:
        """Drop everything that is not in `keys`."""
        for key in self._values.keys() - keys:
            self.drop(key)

    def drop(self, key: Hashable) -> None:
        """Drop one value."""
        self.used_bytes -= self._values.pop(key)[0]
