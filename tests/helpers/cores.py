"""Imported first: each of pytest-xdist's workers has cores of its own.

Libraries start as many threads as they see cores when they are loaded: two workers' would wait for
each other.
"""

from __future__ import annotations

import os

__all__: list[str] = []


def _take_a_share() -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not worker or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    if own:
        os.sched_setaffinity(0, own)


_take_a_share()
