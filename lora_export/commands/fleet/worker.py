"""The worker of a fleet: rows as lines of JSON on stdin, answers as lines of JSON on stdout.

    {"row": {…}, "store": DIRECTORY, "log": FILE}  →  {"status": "done" | "failed", "exit_code": …}

It runs as ``python -m lora_export.commands.fleet.worker``. What libraries print goes to stderr.
When stdin ends, the run that started it is gone: it stops at once, as if it had been killed, which
leaves no half-written artifact.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.row_jobs import run_job
from lora_export.core.errors import LoraExportError, StorageError
from lora_export.fleet.fleet_plan import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["main", "perform"]

_ABANDONED: Final = 143


class _Log:
    """Progress as lines of a file."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def start(self, what: str, total_bytes: int | None = None) -> None:  # noqa: ARG002  (a line has no bar)
        """Write the name of the stage."""
        self.note(what)

    def advance(self, count_bytes: int) -> None:
        """Write nothing."""

    def note(self, text: str) -> None:
        """Write a line."""
        self._stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._stream.flush()


def perform(task: Mapping[str, Any]) -> dict[str, Any]:
    """Run the row of a task; return its answer, whatever happens in it."""
    began = time.monotonic()
    row = Row.model_validate(task["row"])
    log = Path(task["log"])
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            answer = _guarded(row, Path(task["store"]), _Log(stream))
    except OSError as error:
        answer = _failed(StorageError(f"cannot write {str(log)!r}: {error.strerror}"))
    return {**answer, "seconds": round(time.monotonic() - began, 3)}


def _guarded(row: Row, store: Path, log: _Log) -> dict[str, Any]:
    """Return the answer of a job; an error of any kind becomes one that names it."""
    try:
        return {"status": "done", **run_job(row, store, log)}
    except LoraExportError as error:
        return _failed(error)
    except MemoryError:
        memory = StorageError("memory does not suffice for this row")
        return {**_failed(memory), "kind": "MemoryError"}
    except Exception as error:  # noqa: BLE001  (the row is the boundary: others go on)
        import traceback

        log.note(traceback.format_exc())
        message = f"unexpected {type(error).__name__}: {error}"
        return _failed(LoraExportError(message, hint="This is a bug; the row's log has more."))


def _failed(error: LoraExportError) -> dict[str, Any]:
    said = f"{error.message}\n{error.hint}" if error.hint else error.message
    return {
        "status": "failed",
        "exit_code": error.exit_code,
        "message": said,
        "kind": type(error).__name__,
    }


def main() -> None:
    """Answer tasks until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    tasks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(tasks, busy), daemon=True).start()
    while (line := tasks.get()) is not None:
        answer = perform(json.loads(line))
        busy.clear()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _read(tasks: queue.SimpleQueue[str | None], busy: threading.Event) -> None:
    """Pass on the lines of stdin; end the process where they end in the middle of a task."""
    for line in sys.stdin:
        busy.set()
        tasks.put(line)
    if busy.is_set():
        os._exit(_ABANDONED)
    tasks.put(None)


if __name__ == "__main__":
    main()
