"""Fleets for tests: plans made by hand, and executors that run in this process."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from lora_export.fleet.executor import Answer
from lora_export.fleet.fleet_plan import Estimate, Plan, Row, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["InlineExecutor", "plan_of", "row_of"]


def row_of(
    name: str, *, needs: tuple[str, ...] = (), after: tuple[str, ...] = (), **more: Any
) -> Row:
    """Return a row that only its name and what it waits for tell apart."""
    settings: dict[str, Any] = {
        "kind": "adapter", "base": "b", "variant": "v", "artifact": "exports/b/v", "job": {},
        "estimate": Estimate(memory_bytes=0, disk_bytes=0, seconds=0.0), "key": key_of(name=name),
    }  # fmt: skip
    return Row(id=name, needs=needs, after=after, **(settings | more))


def plan_of(*rows: Row, store: Path | str = "store") -> Plan:
    """Return a plan of rows."""
    return Plan(tool="0", store=str(store), rows=rows)


class InlineExecutor:
    """Does each task when it is asked for answers, in the order in which tasks came.

    Args:
        perform: Returns a task's answer; None where its worker dies, by the kernel's hand.
        jobs: How many tasks it takes at a time.
    """

    def __init__(
        self, perform: Callable[[Mapping[str, Any]], dict[str, Any] | None], jobs: int = 2
    ) -> None:
        self._perform, self._jobs = perform, jobs
        self._tasks: deque[tuple[str, Mapping[str, Any]]] = deque()
        self.done: list[str] = []
        self.most = 0
        self.closed = False

    @property
    def free(self) -> int:
        """The number of tasks that it still takes."""
        return self._jobs - len(self._tasks)

    def submit(self, name: str, task: Mapping[str, Any]) -> None:
        """Take a task."""
        self._tasks.append((name, task))
        self.most = max(self.most, len(self._tasks))

    def wait(self, seconds: float) -> list[Answer]:
        """Do the first task."""
        name, task = self._tasks.popleft()
        self.done.append(name)
        table = self._perform(task)
        if table is None:
            return [Answer(name, None, "its worker was ended by SIGKILL", for_memory=True)]
        return [Answer(name, table)]

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
