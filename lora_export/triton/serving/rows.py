"""Requests as rows, each with its adapter: grouped, run, and put together again.

A request of n rows names one adapter, or one for each row. Rows of equal shapes and adapter run
together, whoever sent them; in a batched graph all rows of equal shapes do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Run = Callable[[Sequence[str | None], Mapping[str, "Array"]], list["Array"]]

__all__ = ["Failure", "Job", "run_jobs"]

Array = np.ndarray[Any, Any]


class Failure(Exception):  # noqa: N818  (what a request is answered with, not always an error here)
    """The error of one request.

    Args:
        kind: The name of one of Triton's error codes (``NOT_FOUND``).
        message: What is wrong, and what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def detached(self) -> Failure:
        """Return it without where it was raised.

        A stack holds a request's tensors, and in a circle the failure too. They lie in memory that
        is shared with the server: a stub that lets go of them after that has gone crashes.
        """
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


@dataclass
class Job:
    """One request.

    Attributes:
        feeds: Its inputs, the batch first.
        adapters: The adapter of each row; None is the base.
        failure: What it is refused with.
        outputs: Its outputs, once it has run.
    """

    feeds: Mapping[str, Array]
    adapters: Sequence[str | None]
    failure: Failure | None = None
    outputs: list[Array] = field(default_factory=list)

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The shapes of its inputs without the batch."""
        return tuple((name, each.shape[1:]) for name, each in sorted(self.feeds.items()))


@dataclass
class _Part:
    """Rows of one job."""

    job: Job
    rows: list[int]


def run_jobs(jobs: Sequence[Job], run: Run, *, mixed: bool) -> None:
    """Run all jobs that have no failure yet; each ends with outputs or with a failure of its own.

    Args:
        jobs: The requests of one batch.
        run: Runs rows: the adapter of each, their inputs; returns the outputs.
        mixed: Whether rows of several adapters can run at once.
    """
    done: dict[int, list[tuple[list[int], list[Array]]]] = {}
    for parts in _groups([job for job in jobs if job.failure is None], mixed=mixed):
        for part, outputs in _run_parts(parts, run):
            done.setdefault(id(part.job), []).append((part.rows, outputs))
    for job in jobs:
        if job.failure is None:
            job.outputs = _assembled(done[id(job)], len(job.adapters))


def _groups(jobs: Sequence[Job], *, mixed: bool) -> Iterator[list[_Part]]:
    groups: dict[Any, list[_Part]] = {}
    for job in jobs:
        found: dict[Any, list[int]] = {}
        for row, adapter in enumerate(job.adapters):
            found.setdefault(None if mixed else (adapter,), []).append(row)
        for key, rows in found.items():
            groups.setdefault((key, job.shapes), []).append(_Part(job, rows))
    yield from groups.values()


def _run_parts(parts: list[_Part], run: Run) -> Iterator[tuple[_Part, list[Array]]]:
    """Run parts at once; where that fails, one by one, so that only those at fault fail."""
    parts = [part for part in parts if part.job.failure is None]
    if not parts:
        return
    try:
        outputs = _run_together(parts, run)
    except Failure as failure:
        if len(parts) == 1:
            parts[0].job.failure = failure.detached()
            return
        for part in parts:
            yield from _run_parts([part], run)
        return
    start = 0
    for part in parts:
        stop = start + len(part.rows)
        yield part, [each[start:stop] for each in outputs]
        start = stop


def _run_together(parts: Sequence[_Part], run: Run) -> list[Array]:
    first = parts[0]
    adapters = [part.job.adapters[row] for part in parts for row in part.rows]
    if len(parts) == 1 and len(first.rows) == len(first.job.adapters):
        return run(adapters, first.job.feeds)
    feeds = {
        name: np.concatenate([part.job.feeds[name][part.rows] for part in parts])
        for name in first.job.feeds
    }
    return run(adapters, feeds)


def _assembled(parts: list[tuple[list[int], list[Array]]], count: int) -> list[Array]:
    """Return a job's outputs in the order of its rows.

    Where heads of its rows differ in width, logits that a row does not have are the lowest number
    of the dtype, as in a batched graph.
    """
    if len(parts) == 1:
        return parts[0][1]
    outputs = []
    for position, first in enumerate(parts[0][1]):
        shapes = [values[position].shape[1:] for _, values in parts]
        whole = np.empty((count, *map(max, zip(*shapes, strict=True))), first.dtype)
        if len(set(shapes)) > 1:
            whole.fill(_lowest(first.dtype))
        for rows, values in parts:
            own = values[position]
            for row, each in zip(rows, own, strict=True):
                whole[row][tuple(map(slice, own.shape[1:]))] = each
        outputs.append(whole)
    return outputs


def _lowest(dtype: np.dtype[Any]) -> Any:
    """Return the lowest number of a dtype."""
    if dtype.kind == "f":
        return np.finfo(dtype).min
    return np.iinfo(dtype).min if dtype.kind in "iu" else False
