"""A cache of loaded values with a byte budget: what is in use stays, the least recently used goes.

The budget is kept strictly. A value is paid for before it is loaded; where that needs room which
values in use take up, the caller waits until one of them is let go. Callers hold one value at a
time, so somebody always can go on.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

__all__ = ["ByteCache"]

Value = TypeVar("Value")


@dataclass
class _Slot(Generic[Value]):
    """A value that is loaded, or being loaded while `value` is None."""

    nbytes: int
    users: int = 1
    value: Value | None = field(default=None, repr=False)


class ByteCache(Generic[Value]):
    """Values by key, loaded once each; thread-safe.

    Args:
        limit_bytes: What all values together may take; None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._slots: OrderedDict[Hashable, _Slot[Value]] = OrderedDict()  # oldest use first
        self._used_bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def used_bytes(self) -> int:
        """The bytes of the values, including those that are being loaded."""
        with self._changed:
            return self._used_bytes

    @contextlib.contextmanager
    def hold(self, key: Hashable, nbytes: int, load: Callable[[], Value]) -> Iterator[Value]:
        """Yield the value of `key`, which is not evicted meanwhile.

        Args:
            key: What identifies it.
            nbytes: What it will take, known before it is loaded.
            load: Returns it; called by one thread at a time for one key, outside the lock.

        Raises:
            UsageError: It is larger than the budget, or the cache is closed.
        """
        slot = self._take(key, nbytes)
        try:
            if slot.value is None:
                self._fill(key, slot, load)
            assert slot.value is not None  # noqa: S101  (filled)
            yield slot.value
        finally:
            with self._changed:
                slot.users -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Forget every value; those in use live until they are let go."""
        with self._changed:
            self._closed = True
            self._slots.clear()
            self._used_bytes = 0
            self._changed.notify_all()

    def _take(self, key: Hashable, nbytes: int) -> _Slot[Value]:
        """Return the loaded slot of `key`, or a paid one that this thread has to fill."""
        if self._limit_bytes is not None and nbytes > self._limit_bytes:
            msg = f"loading {key} takes {nbytes} bytes, the cache may hold {self._limit_bytes}"
            raise UsageError(msg, hint=f"Raise cache_bytes to {nbytes} at least.")
        with self._changed:
            while True:
                if self._closed:
                    msg = "the session is closed"
                    raise UsageError(msg, hint="Open the export again.")
                slot = self._slots.get(key)
                if slot is not None and slot.value is not None:
                    slot.users += 1
                    self._slots.move_to_end(key)
                    return slot
                if slot is None and self._make_room(nbytes):
                    self._slots[key] = fresh = _Slot[Value](nbytes)
                    self._used_bytes += nbytes
                    return fresh
                self._changed.wait()

    def _make_room(self, nbytes: int) -> bool:
        """Evict the oldest values that nobody uses until `nbytes` fit; whether they do."""
        if self._limit_bytes is None:
            return True
        target = self._limit_bytes - nbytes
        idle = [(key, slot.nbytes) for key, slot in self._slots.items() if not slot.users]
        if self._used_bytes - sum(size for _, size in idle) > target:
            return False  # and nothing is evicted in vain
        for key, size in idle:
            if self._used_bytes <= target:
                break
            del self._slots[key]
            self._used_bytes -= size
        return True

    def _fill(self, key: Hashable, slot: _Slot[Value], load: Callable[[], Value]) -> None:
        try:
            value = load()
        except BaseException:
            with self._changed:
                if self._slots.get(key) is slot:
                    del self._slots[key]
                    self._used_bytes -= slot.nbytes
                self._changed.notify_all()
            raise
        with self._changed:
            slot.value = value
            self._changed.notify_all()
