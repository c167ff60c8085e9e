"""Tasks for workers of a Ray cluster: they sleep, answer, fail or die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["act"]


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
