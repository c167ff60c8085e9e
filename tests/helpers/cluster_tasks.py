"""Tasks for workers of a Ray cluster: they sleep, answer, fail or die."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.fleet.store.open_store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["act", "store_row"]


def act(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a task says: ``sleep``, ``die`` (while a file is absent), ``import``, ``raise``."""
    time.sleep(task.get("sleep", 0))
    if mark := task.get("die"):
        path = Path(mark)
        if not path.exists():
            path.write_text("died once")
            os.kill(os.getpid(), signal.SIGKILL)
    if task.get("import"):
        __import__(task["import"])
    if task.get("raise"):
        raise ValueError(task["raise"])
    return {"echo": task, "pid": os.getpid()}


def store_row(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do a simulated row: sleep, then store a file as its artifact.

    ``job`` has the seconds of ``sleep`` and a folder, ``work``, which gets a file
    ``begun/KEY-NODE-MARK`` when the row begins and ``ended/KEY-NODE-MARK`` when it is stored.
    """
    import ray

    row = task["row"]
    work, node = Path(row["job"]["work"]), ray.get_runtime_context().get_node_id()
    name = f"{row['key']}-{node}-{uuid.uuid4().hex}"
    (work / "begun" / name).touch()
    time.sleep(row["job"]["sleep"])
    folder = work / "made" / name
    folder.mkdir(parents=True)
    (folder / "made").write_text(row["id"])
    about = {"status": "done", "run": task["run"], "mode": "merged"}
    store = open_store(task["store"])
    store.put(row["key"], folder, ["made"], kind=row["kind"], name=row["id"], about=about)
    (work / "ended" / name).touch()
    return {"status": "done", "seconds": row["job"]["sleep"]}
