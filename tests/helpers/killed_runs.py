"""Runs of a fleet that are killed at random moments, each in a fork of this process.

Usage: python -m tests.helpers.killed_runs FLEET SEED KILLS

The libraries are imported once, so that the moments fall into the work of rows. When a run gets to
its end, its store is set aside as ``whole-N``, and the next one begins with an empty store.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import onnxruntime  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

from tests.helpers.fleets import run_here


def main() -> None:
    fleet, chance, kills = Path(sys.argv[1]), random.Random(int(sys.argv[2])), int(sys.argv[3])
    began = time.monotonic()
    assert attempt(fleet, None) == 0
    whole = time.monotonic() - began
    set_aside(fleet, 0)
    killed, wholes = 0, 1
    while killed < kills or (fleet.parent / "out").exists():
        ended = attempt(fleet, chance.uniform(0.0, whole) if killed < kills else None)
        if ended is None:
            killed += 1
            continue
        assert ended == 0, f"exit code {ended}"
        set_aside(fleet, wholes)
        wholes += 1
    sys.stdout.write(json.dumps({"seconds": whole, "killed": killed, "wholes": wholes}) + "\n")


def attempt(fleet: Path, seconds: float | None) -> int | None:
    """Run a fleet; return its exit code, or None where it was killed after so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(run_here(fleet)["exit"])
        finally:
            os._exit(code)
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


def set_aside(fleet: Path, at: int) -> None:
    """Rename the store of a run that has ended."""
    (fleet.parent / "out").rename(fleet.parent / f"whole-{at}")


if __name__ == "__main__":
    main()
