"""Workers of a Ray cluster that are killed while they do a row."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["workers_killed"]

KINDS = ("export", "adapter", "engine", "bundle")


@contextlib.contextmanager
def workers_killed(most: int = 2, pause_seconds: float = 4.0) -> Iterator[list[int]]:
    """Kill workers at work, one after the other; yield the list of those that were killed.

    Args:
        most: How many.
        pause_seconds: The time between two.
    """
    import psutil

    stop = threading.Event()
    killed: list[int] = []

    def disturb() -> None:
        while len(killed) < most and not stop.wait(0.5):
            at_work = [
                each.pid for each in psutil.process_iter(["cmdline"])
                if (each.info["cmdline"] or [""])[0].startswith(tuple(f"ray::{k}:" for k in KINDS))
            ]  # fmt: skip
            if at_work:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(at_work[0], signal.SIGKILL)
                    killed.append(at_work[0])
                stop.wait(pause_seconds)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()
