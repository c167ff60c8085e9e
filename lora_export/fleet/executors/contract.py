"""The contract of executors: rows go out as JSON, answers come back as JSON, files by the store.

An executor knows nothing of exports. It starts a worker, hands it one task after the other, and
reports what the worker answered or that it died.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "Demand", "Executor", "late_words"]


@dataclass(frozen=True)
class Demand:
    """The resources that a task is expected to take, for executors that place tasks by them.

    Attributes:
        memory_bytes: Its peak memory.
        seconds: Its time.
        target: A target whose device is needed.
        attempt: How often it was tried, this time included.
        limit_seconds: The time after which it is stopped.
    """

    memory_bytes: int = 0
    seconds: float = 0.0
    target: str | None = None
    attempt: int = 1
    limit_seconds: float = math.inf


@dataclass(frozen=True)
class Answer:
    """The answer to a task.

    Attributes:
        id: The task's name.
        table: What the worker answered; None where it died.
        died: How it died, in words.
        for_memory: Whether it was killed, as the kernel kills what takes too much memory.
        lost: Whether its machine or its process was lost, through no fault of the task: it can be
            tried again beside others.
        late: Whether it was stopped at its time limit.
    """

    id: str
    table: Mapping[str, Any] | None
    died: str = ""
    for_memory: bool = False
    lost: bool = False
    late: bool = False


def late_words(limit_seconds: float) -> str:
    """Return why a task was stopped.

    >>> late_words(3600.0)
    'it took longer than 3,600 s and was stopped'
    """
    return f"it took longer than {limit_seconds:,.10g} s and was stopped"


class Executor(Protocol):
    """A place where rows run.

    Attributes:
        is_away: Whether workers reach files through the store alone.
    """

    is_away: bool

    @property
    def free(self) -> int:
        """The number of tasks that can be handed over now."""

    def submit(self, name: str, task: Mapping[str, Any], demand: Demand) -> None:
        """Hand over a task, which is JSON."""

    def wait(self, seconds: float) -> list[Answer]:
        """Return the answers that came, after at most so many seconds."""

    def close(self) -> None:
        """Stop the workers; what they were doing is lost."""
