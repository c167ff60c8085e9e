"""The contract of executors: rows go out as JSON, answers come back as JSON, files by the store.

An executor knows nothing of exports. It starts a worker, hands it one task after the other, and
reports what the worker answered or that it died.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "Executor"]


@dataclass(frozen=True)
class Answer:
    """The answer to a task.

    Attributes:
        id: The task's name.
        table: What the worker answered; None where it died.
        died: How it died, in words.
        for_memory: Whether it was killed, as the kernel kills what takes too much memory.
    """

    id: str
    table: Mapping[str, Any] | None
    died: str = ""
    for_memory: bool = False


class Executor(Protocol):
    """A place where rows run."""

    @property
    def free(self) -> int:
        """The number of tasks that can be handed over now."""

    def submit(self, name: str, task: Mapping[str, Any]) -> None:
        """Hand over a task, which is JSON."""

    def wait(self, seconds: float) -> list[Answer]:
        """Return the answers that came, after at most so many seconds."""

    def close(self) -> None:
        """Stop the workers; what they were doing is lost."""
