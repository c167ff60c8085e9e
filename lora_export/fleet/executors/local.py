"""Workers as processes of this machine, each of which does one task after the other.

A worker reads a task as one line of JSON and answers with one line. Libraries are imported once in
each, which is most of the time of a small task. Its other output goes to a file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final

from lora_export.core.errors import StorageError
from lora_export.fleet.executors.contract import Answer, Demand, late_words
from lora_export.ondevice.file_opening import reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["LocalExecutor"]

_TASKS_EACH: Final = 100
"""A worker that has done so many tasks is replaced: its memory is given back."""

_STOP_SECONDS: Final = 5.0
_READ_BYTES: Final = 1 << 20


class _Worker:
    """A process, and the task that it is doing."""

    def __init__(self, command: Sequence[str], errors: IO[bytes], threads: int) -> None:
        self.process = subprocess.Popen(  # noqa: S603  (this program)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C goes to this process, which stops them
        )
        self.task: str | None = None
        self.until = math.inf
        self.limit_seconds = math.inf
        self.done = 0
        self._buffer = b""

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None  # noqa: S101  (it is a pipe)
        return self.process.stdout

    def give(self, name: str, task: Mapping[str, Any], limit_seconds: float) -> None:
        """Hand over a task; a worker that has died meanwhile is noticed when it is read."""
        assert self.process.stdin is not None  # noqa: S101  (it is a pipe)
        self.task = name
        self.limit_seconds = limit_seconds
        self.until = time.monotonic() + limit_seconds
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> bytes | None:
        """Return the line that it has answered, if it is whole; `EOFError` where it has died."""
        data = os.read(self.output.fileno(), _READ_BYTES)
        if not data:
            raise EOFError
        self._buffer += data
        line, found, rest = self._buffer.partition(b"\n")
        if not found:
            return None
        self._buffer = rest
        return line

    def stop(self, *, at_once: bool) -> None:
        """End the process and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGTERM if at_once else 0)
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()


class LocalExecutor:
    """Processes of this machine.

    Args:
        command: What starts a worker.
        jobs: How many there are.
        errors: The file that takes what workers write to stderr.
    """

    is_away = False

    def __init__(self, command: Sequence[str], jobs: int, errors: Path) -> None:
        self._command, self._jobs = list(command), jobs
        self._workers: list[_Worker] = []
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        try:
            errors.parent.mkdir(parents=True, exist_ok=True)
            self._errors = errors.open("ab")
        except OSError as error:
            msg = f"cannot write {str(errors)!r}: {reason_of(error)}"
            raise StorageError(msg, hint="Check the store and its disk, then run again.") from error
        self._selector = selectors.DefaultSelector()

    @property
    def free(self) -> int:
        """The number of tasks that can be handed over now."""
        return self._jobs - sum(each.task is not None for each in self._workers)

    def submit(
        self,
        name: str,
        task: Mapping[str, Any],
        demand: Demand | None = None,
    ) -> None:
        """Hand over a task to an idle worker, or to a new one."""
        worker = next((each for each in self._workers if each.task is None), None)
        if worker is None:
            worker = _Worker(self._command, self._errors, self._threads)
            self._workers.append(worker)
            self._selector.register(worker.output, selectors.EVENT_READ, worker)
        worker.give(name, task, (demand or Demand()).limit_seconds)

    def wait(self, seconds: float) -> list[Answer]:
        """Return the answers that came, after at most so many seconds."""
        answers = []
        for key, _ in self._selector.select(seconds):
            worker: _Worker = key.data
            try:
                line = worker.read()
            except EOFError:
                answers += self._buried(worker)
                continue
            if line is not None and worker.task is not None:
                answers.append(self._answered(worker, line))
        return answers + self._overdue()

    def close(self) -> None:
        """Stop the workers; what they were doing is lost."""
        for worker in self._workers:
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.output)
            worker.stop(at_once=True)
        self._workers.clear()
        self._selector.close()
        self._errors.close()

    def _answered(self, worker: _Worker, line: bytes) -> Answer:
        name, worker.task = worker.task, None
        assert name is not None  # noqa: S101  (the caller looked)
        worker.done += 1
        if worker.done >= _TASKS_EACH:
            self._dismiss(worker, at_once=False)
        try:
            table = json.loads(line)
        except ValueError:
            table = None
        if not isinstance(table, dict):
            return Answer(name, None, "its worker answered something that is not JSON")
        return Answer(name, table)

    def _overdue(self) -> list[Answer]:
        """Stop the workers whose task has taken longer than its limit."""
        now = time.monotonic()
        answers = []
        for worker in [each for each in self._workers if each.task and now > each.until]:
            name = str(worker.task)
            self._dismiss(worker, at_once=True)
            answers.append(Answer(name, None, late_words(worker.limit_seconds), late=True))
        return answers

    def _buried(self, worker: _Worker) -> list[Answer]:
        """Take a dead worker away; return the answer for the task that it was doing."""
        self._dismiss(worker, at_once=True)
        if worker.task is None:
            return []
        code = worker.process.returncode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            killed = f"its worker was ended by {name}"
            return [Answer(worker.task, None, killed, for_memory=-code == signal.SIGKILL)]
        return [Answer(worker.task, None, f"its worker ended with code {code}")]

    def _dismiss(self, worker: _Worker, *, at_once: bool) -> None:
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        worker.stop(at_once=at_once)


def python_command(module: str) -> list[str]:
    """Return the command that runs a module as a worker, with this Python."""
    return [sys.executable, "-m", module]
