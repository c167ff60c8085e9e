"""Run a function in a forked process, within limits of time and memory."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Limits", "Outcome", "run_forked"]

_LOOK_SECONDS: Final = 0.02
_STACK_SECONDS: Final = 0.3
_CAPABILITIES_VERSION: Final = 0x20080522
_READS_ANYTHING: Final = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Limits(NamedTuple):
    """The limits of a process: processor time, time asleep, memory."""

    seconds: float
    memory_bytes: int


class Outcome(NamedTuple):
    """The end of a process.

    Attributes:
        code: Its exit code; below 0, the signal that ended it.
        out: What it printed to stdout.
        err: What it printed to stderr.
        seconds: The processor time that it used.
        memory_bytes: The most memory that it held when it was looked at.
        ended: Why it was ended, if it was.
        stack: Where it was then.
    """

    code: int
    out: str
    err: str
    seconds: float
    memory_bytes: int
    ended: Literal["time", "sleep", "memory"] | None = None
    stack: str = ""


class _Status(NamedTuple):
    is_asleep: bool
    seconds: float
    memory_bytes: int


def run_forked(
    function: Callable[[], int],
    limits: Limits,
    scratch: Path,
    *,
    environment: Mapping[str, str],
    folder: Path,
    obeys_modes: bool = False,
) -> Outcome:
    """Run `function` in a forked process with a session of its own; return what became of it.

    On a busy machine the clock says little: what counts is processor time, and time asleep in one
    go (a pipe without a writer).

    Args:
        function: Returns the exit code.
        limits: When the process is ended.
        scratch: A folder for what it prints.
        environment: Variables that are set there.
        folder: Its working directory.
        obeys_modes: Whether root, too, is refused what a file's mode forbids.
    """
    files = [scratch / name for name in ("stdout", "stderr", "stack")]
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        _become(function, files, environment, folder, obeys_modes=obeys_modes)
    ended, status = _watch(pid, limits)
    if ended is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
            time.sleep(_STACK_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it started, and itself where it was to be ended
    _, wait_status, usage = os.wait4(pid, 0)
    out, err, stack = (path.read_bytes().decode("utf-8", "replace") for path in files)
    return Outcome(
        os.waitstatus_to_exitcode(wait_status), out, err, usage.ru_utime + usage.ru_stime,
        status.memory_bytes, ended, stack,
    )  # fmt: skip


def _watch(pid: int, limits: Limits) -> tuple[Literal["time", "sleep", "memory"] | None, _Status]:
    """Wait for a process; return why it has to be ended, if it has to, and its last status."""
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    last, most, awake = _Status(is_asleep=False, seconds=0.0, memory_bytes=0), 0, time.monotonic()
    try:
        while not poll.poll(_LOOK_SECONDS * 1000):
            now = _status(pid) or last
            most = max(most, now.memory_bytes)
            if not now.is_asleep or now.seconds > last.seconds:
                awake = time.monotonic()
            last = now._replace(memory_bytes=most)
            if now.memory_bytes > limits.memory_bytes:
                return "memory", last
            if now.seconds > limits.seconds:
                return "time", last
            if time.monotonic() - awake > limits.seconds:
                return "sleep", last
    finally:
        os.close(descriptor)
    return None, last


def _status(pid: int) -> _Status | None:
    """Return the state of a process, its processor time and its memory."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return None
    seconds = (int(fields[11]) + int(fields[12])) / _TICKS
    return _Status(fields[0] in "SD", seconds, int(fields[21]) * _PAGE_BYTES)


def _become(
    function: Callable[[], int],
    files: list[Path],
    environment: Mapping[str, str],
    folder: Path,
    *,
    obeys_modes: bool,
) -> None:
    """Be the new process; this does not return."""
    code = 1
    try:
        os.setsid()
        for number, path in enumerate(files[:2], start=1):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        stack = files[2].open("w")
        faulthandler.register(signal.SIGUSR1, stack)
        os.environ.update(environment)
        os.chdir(folder)
        if obeys_modes and os.geteuid() == 0:
            _obey_modes()
        code = function()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:  # noqa: BLE001  (a finding: it is printed, and judged)
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _obey_modes() -> None:
    """Give up root's right to read and write whatever it likes (``capset(2)``)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    low, high = ~_READS_ANYTHING & 0xFFFFFFFF, 0xFFFFFFFF
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0  # noqa: S101
    for number in (0, 1):  # effective, permitted
        sets[number] &= low
        sets[number + 3] &= high
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
