"""Fleets for tests: plans made by hand, and executors that run in this process."""

from __future__ import annotations

import json
import shutil
from collections import deque
from typing import TYPE_CHECKING, Any

import yaml

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.run import run_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.commands.fleet.worker import perform
from lora_export.core.progress import Silent
from lora_export.fleet.executors.contract import Answer, Demand, late_words
from lora_export.fleet.fleet_plan import Estimate, Plan, Row, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.helpers.models import TinyModels

__all__ = ["InlineExecutor", "plan_of", "row_of", "run_here", "scale", "tiny_fleet"]


def tiny_fleet(tiny: TinyModels, folder: Path, **keys: Any) -> Path:
    """Write a fleet of a tiny base; return its ``fleet.yaml``.

    Its adapters are two good ones, ``one`` and ``two``, and ``idle``, which has no effect.

    Args:
        tiny: Makes the models.
        folder: Where it is written.
        keys: Further keys of ``fleet.yaml``.
    """
    base = tiny.base("bert", "feature-extraction", tokenizer=True)  # the adapters bring the head
    shutil.copytree(base, folder / "base")
    for name, seed in (("one", 1), ("two", 2), ("idle", 3)):
        adapter = tiny.adapter(base, task="text-classification", seed=seed)
        shutil.copytree(adapter, folder / "adapters" / name)
    scale(folder / "adapters" / "idle", 0.0)
    table = {
        "bases": {"tiny": {"path": "base", "task": "text-classification"}},
        "adapters": [{"base": "tiny", "path": "adapters/*"}],
        "store": "out",
        **keys,
    }
    (folder / "fleet.yaml").write_text(yaml.safe_dump(table))
    return folder / "fleet.yaml"


def scale(adapter: Path, alpha: float) -> None:
    """Change the scale of an adapter, and nothing else."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": alpha}))


def run_here(fleet: Path, **settings: Any) -> dict[str, Any]:
    """Run a fleet in this process; return its rows by name, and its exit code as ``exit``."""
    plan = plan_fleet(load_fleet(fleet), Silent())
    outcome = run_fleet(plan, executor=InlineExecutor(perform, jobs=1), **settings)
    return {row["id"]: row for row in outcome.table["rows"]} | {"exit": outcome.exit_code}


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
        perform: Returns a task's answer; None where its worker dies, by the kernel's hand; a
            number of seconds that it takes, which is compared with the limit of the task.
        jobs: How many tasks it takes at a time.
    """

    def __init__(
        self,
        perform: Callable[[Mapping[str, Any]], dict[str, Any] | float | None],
        jobs: int = 2,
        *,
        is_away: bool = False,
    ) -> None:
        self.is_away = is_away
        self._perform, self._jobs = perform, jobs
        self._tasks: deque[tuple[str, Mapping[str, Any], float]] = deque()
        self.done: list[str] = []
        self.most = 0
        self.closed = False

    @property
    def free(self) -> int:
        """The number of tasks that it still takes."""
        return self._jobs - len(self._tasks)

    def submit(self, name: str, task: Mapping[str, Any], demand: Demand | None = None) -> None:
        """Take a task."""
        self._tasks.append((name, task, (demand or Demand()).limit_seconds))
        self.most = max(self.most, len(self._tasks))

    def wait(self, seconds: float) -> list[Answer]:
        """Do the first task."""
        name, task, limit = self._tasks.popleft()
        self.done.append(name)
        table = self._perform(task)
        if table is None:
            return [Answer(name, None, "its worker was ended by SIGKILL", for_memory=True)]
        if isinstance(table, float):
            late = table > limit
            return [
                Answer(name, None if late else {"status": "done"}, late_words(limit), late=late)
            ]
        return [Answer(name, table)]

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
