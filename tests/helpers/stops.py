"""Commands that are stopped before each of their changes to the file system.

Python announces every change (audit events), so that nothing of the program has to be known. The
stopped process is a fork of one that has everything imported: hundreds of deaths take seconds.

``python -m tests.helpers.stops`` is that process. It reads plans, one JSON object a line, and
writes a row for each stop, after which it waits for a line.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Stopper"]

_EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "fcntl.flock",
           "shutil.rmtree"}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Stopper:
    """A process that stops commands; started when first needed, ended by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def stop(
        self,
        area: Path,
        prepared: Path | None,
        arguments: Sequence[Any],
        again: Sequence[Any],
        *,
        how: str,
        step: int,
    ) -> Iterator[dict[str, Any]]:
        """Yield a row per stop, while the folders of `area` are as that stop left them.

        ``parent`` is where the command ran, and ran again; ``stopped`` a copy from between both.
        The row: ``stop_at``, the number of the change; ``died`` and ``again``, the exit codes.

        Args:
            area: Changes to files below it count.
            prepared: The export that ``parent/out`` is before each run; None for none.
            arguments: The command.
            again: The command that runs after a stop.
            how: ``kill``, or the name of a signal.
            step: Every `step`-th change is stopped at.
        """
        plan = {
            "area": str(area), "prepared": prepared and str(prepared), "how": how, "step": step,
            "arguments": [str(a) for a in arguments], "again": [str(a) for a in again],
        }  # fmt: skip
        self._process = self._process or _start()
        came_through = False
        try:
            head = self._ask(json.dumps(plan))
            assert head["clean"] == 0
            assert head["total"] > 5
            while row := self._ask(""):
                yield row
            came_through = True
        finally:
            if not came_through:  # what the process would write next is of no plan
                self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        self._process = None

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.stops"],
        cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


# ------------------------------------------------------------------------------- in that process


def _main() -> None:
    import lora_export.cli  # noqa: F401

    while line := sys.stdin.readline():
        _follow(json.loads(line))


def _follow(plan: dict[str, Any]) -> None:
    """Run a command whole, then stop it at each change, in forks of this process."""
    area = Path(plan["area"])
    _lay_out(area / "parent", plan["prepared"])
    code, came = _attempt(plan, "arguments", -1)
    _import(came["modules"])
    _answer({"clean": code, "total": came["count"]})
    for stop_at in range(1, came["count"] + 1, plan["step"]):
        _lay_out(area / "parent", plan["prepared"])
        died, _ = _attempt(plan, "arguments", stop_at)
        shutil.rmtree(area / "stopped", ignore_errors=True)
        shutil.copytree(area / "parent", area / "stopped")
        again, more = _attempt(plan, "again", -1)
        _import(more.get("modules", []))
        _answer({"stop_at": stop_at, "died": died, "again": again})
    _answer({})


def _answer(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    if row:
        sys.stdin.readline()


def _lay_out(target: Path, prepared: str | None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    if prepared:
        shutil.copytree(prepared, target / "out")


def _import(names: Sequence[str]) -> None:
    """Import what a fork imported: the next ones need not."""
    if not names:
        return
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks do not copy these pages when they collect


def _attempt(plan: dict[str, Any], command: str, stop_at: int) -> tuple[int, dict[str, Any]]:
    """Run a command in a fork; return its exit code, and what it tells where it comes through."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(plan, plan[command], stop_at, writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        came = json.loads(told.read() or "{}")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), came


def _run(plan: dict[str, Any], arguments: list[str], stop_at: int, writer: int) -> None:
    """Run a command that ends at its change number `stop_at`; the process ends with it."""
    from lora_export.cli import run

    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    before = set(sys.modules)
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _EVENTS:
            return
        if event != "fcntl.flock" and not any(str(a).startswith(plan["area"]) for a in args[:2]):
            return
        if event == "open" and not args[2] & _WRITING:
            return
        count += 1
        if count == stop_at:
            how = "SIGKILL" if plan["how"] == "kill" else plan["how"]
            os.kill(os.getpid(), getattr(signal, how))

    sys.addaudithook(hook)
    try:
        code = run(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    told = {"count": count, "modules": [name for name in sys.modules if name not in before]}
    with os.fdopen(writer, "w") as pipe:
        pipe.write(json.dumps(told))
    os._exit(code)


if __name__ == "__main__":
    _main()
