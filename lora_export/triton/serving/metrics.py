"""Metrics of a model: requests and loads of each adapter, and the bytes that they take.

Every change of a metric is a message to the server and an answer from it, so a batch changes each
metric once, and only where its value moves.

No metric is ever let go of. The server counts the users of a metric for each object of a family,
and every instance has its own: of two instances, or of a model that is loaded again, the first to
let go would free the value under the other. And a stub lets go of what it still holds when it can
no longer send messages, and crashes.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils  # Triton's own

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .lru import ByteBudget

__all__ = ["Metrics"]


class Metrics:
    """The metrics of one instance of a model.

    Args:
        model: The model's name.
        version: Its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self._requests = _family(
            "lora_export_adapter_requests_total", "Requests that named the adapter", counter
        )
        loads = _family(
            "lora_export_adapter_loads_total", "Adapters loaded into the cache", counter
        )
        cached = _family(
            "lora_export_adapter_cached_bytes", "Bytes that loaded adapters take", gauge
        )
        self._loads = loads.Metric(labels=self._labels)
        self._bytes = cached.Metric(labels=self._labels)
        self._by_adapter: dict[str, Any] = {}
        self._told_loads = self._told_bytes = 0

    def count_requests(self, adapters: Iterable[str]) -> None:
        """Count requests, each by the adapters that it names."""
        for adapter, count in Counter(adapters).items():
            if adapter not in self._by_adapter:
                labels = {**self._labels, "adapter": adapter}
                self._by_adapter[adapter] = self._requests.Metric(labels=labels)
            self._by_adapter[adapter].increment(count)

    def cached(self, budget: ByteBudget[Any]) -> None:
        """Set the metric of cached bytes; instances of one model share it and add up."""
        if budget.loads != self._told_loads:
            self._loads.increment(budget.loads - self._told_loads)
            self._told_loads = budget.loads
        if budget.used_bytes != self._told_bytes:
            self._bytes.increment(budget.used_bytes - self._told_bytes)
            self._told_bytes = budget.used_bytes


def _family(name: str, description: str, kind: Any) -> Any:
    """Return a family that is never deleted, and with it none of its metrics."""
    family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(family))
    return family
