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
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.row_answers import RowLog, answer_of_error, guarded
from lora_export.commands.fleet.row_jobs import run_job
from lora_export.commands.fleet.store_rows import perform_stored
from lora_export.core.errors import StorageError
from lora_export.fleet.fleet_plan import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["main", "perform"]

_ABANDONED: Final = 143


def perform(task: Mapping[str, Any]) -> dict[str, Any]:
    """Run the row of a task; return its answer, whatever happens in it.

    A row that names its ingredients is done in a scratch folder (`perform_stored`); any other in
    the directory of the store.
    """
    if "ingredients" in task:
        return perform_stored(task)
    began = time.monotonic()
    row = Row.model_validate(task["row"])
    log = Path(task["log"])
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            progress = RowLog(stream)
            answer = guarded(lambda: run_job(row, Path(task["store"]), progress), progress)
    except OSError as error:
        answer = answer_of_error(StorageError(f"cannot write {str(log)!r}: {error.strerror}"))
    return {**answer, "seconds": round(time.monotonic() - began, 3)}


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
