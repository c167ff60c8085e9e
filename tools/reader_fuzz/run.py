"""Run inputs: in this process, or in one that is watched, where a hang or a crash is a finding."""

from __future__ import annotations

import collections
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tools.reader_fuzz.table import READERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from types import FrameType

    from tools.reader_fuzz.reader import Files, Reader, Target

__all__ = ["Finding", "Outcome", "draw_input", "read_saved", "run_here", "run_watched"]

SECONDS: Final = 5.0
"""The processor time that one input may take."""

STUCK_SECONDS: Final = 60.0
"""The time after which the process is ended: it does not answer to its own clock."""

MEMORY_BYTES: Final = 1 << 30
"""The memory that an input may take above what the process has before it."""

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (many small files, written and read once)
_INDEX, _READ, _REFUSED, _PEAK_BYTES = range(4)


_Work: TypeAlias = tuple[str, range, int, Path, bool]
"""A reader, indices, a seed, a folder for findings, and whether the first input was the last one
of a process that was lost."""


class TooSlowError(BaseException):
    """An input takes more than its share of processor time."""


@dataclass(frozen=True)
class Finding:
    """An input that a reader should have refused by an error of the project.

    Attributes:
        reader: The reader.
        index: The index by which the input is drawn again.
        kind: The error and where it was raised; equal for what is probably one fault.
        detail: The whole traceback.
    """

    reader: str
    index: int
    kind: str
    detail: str = field(repr=False)


@dataclass
class Outcome:
    """Results of the inputs of one reader.

    Attributes:
        read: How many were read.
        refused: How many were refused by an error of the project.
        seconds: How long it took.
        peak_bytes: The largest resident memory of a process.
        found: How many findings there were of each kind.
        examples: The first finding of each kind.
    """

    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    found: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: dict[str, Finding] = field(default_factory=dict)

    def add(self, finding: Finding) -> bool:
        """Count a finding; return whether it is the first of its kind."""
        self.found[finding.kind] += 1
        return self.examples.setdefault(finding.kind, finding) is finding


def draw_input(target: Target, name: str, seed: int, index: int) -> dict[str, bytes]:
    """Return the input of a seed and an index."""
    chance = Random(f"{seed}:{name}:{index}")
    files = dict(chance.choice(target.seeds))
    changeable = [file for file in files if file in target.mutators]
    for file in chance.sample(changeable, 1 if chance.randrange(5) else len(changeable)):
        files[file] = chance.choice(target.mutators[file])(chance, files[file])
    return files


def run_here(name: str, indices: range, seed: int, kept: Path | None = None) -> Outcome:
    """Run inputs of a reader in this process, without limits."""
    outcome, start = Outcome(), time.monotonic()
    with _ready(name) as (reader, target, folder):
        for index in indices:
            files = draw_input(target, name, seed, index)
            finding = _run_one(reader, target, folder, files)
            if finding is None:
                outcome.read += 1
            elif finding == ():
                outcome.refused += 1
            elif outcome.add(Finding(name, index, *finding)) and kept is not None:
                save_input(kept, f"{name}-{seed}-{index}", files)
    outcome.seconds = time.monotonic() - start
    return outcome


def read_saved(name: str, saved: Path) -> None:
    """Read an input that was kept, and let every error through."""
    files = {each.name: each.read_bytes() for each in saved.iterdir()}
    with _ready(name) as (_, target, folder):
        _write(folder, files)
        target.read(folder)


def run_watched(name: str, indices: range, seed: int, kept: Path) -> Outcome:
    """Run inputs of a reader in a process with limits; start it again behind what ends it."""
    outcome, start = Outcome(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    next_index, lost = indices.start, False
    while next_index < indices.stop:
        counts = context.Array("q", [-1, 0, 0, 0])
        receiver, sender = context.Pipe(duplex=False)
        work = (name, range(next_index, indices.stop), seed, kept, lost)
        process = context.Process(target=_child, args=(work, counts, sender), daemon=True)
        process.start()
        sender.close()
        ended = _watch(process, counts, receiver, outcome)
        index = counts[_INDEX]
        if index < 0:
            msg = f"the reader {name!r} does not start: {ended or 'no input was read'}"
            raise RuntimeError(msg)
        outcome.read += counts[_READ]
        outcome.refused += counts[_REFUSED]
        outcome.peak_bytes = max(outcome.peak_bytes, counts[_PEAK_BYTES])
        if ended == "":
            break
        outcome.add(Finding(name, index, ended, f"the process was lost: {ended}"))
        next_index, lost = index, True  # its input is kept first, unread
    outcome.seconds = time.monotonic() - start
    return outcome


def save_input(kept: Path, label: str, files: Files) -> None:
    """Write an input into a folder of its own."""
    folder = kept / label
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, files)


def _watch(process: Any, counts: Any, receiver: Connection, outcome: Outcome) -> str:
    """Wait for a process; return how it was lost, "" where it came to its end."""
    seen, since = -1, time.monotonic()
    while True:
        try:
            while receiver.poll(0.5):
                outcome.add(receiver.recv())
        except EOFError:
            process.join()
            return "" if process.exitcode == 0 else f"exit code {process.exitcode}"
        if counts[_INDEX] != seen:
            seen, since = counts[_INDEX], time.monotonic()
        elif time.monotonic() - since > STUCK_SECONDS:
            process.kill()
            process.join()
            return "stuck"


def _child(work: _Work, counts: Any, sender: Connection) -> None:
    """Run inputs under limits; the first one is only kept where it has ended a process."""
    name, indices, seed, kept, lost = work
    signal.signal(signal.SIGPROF, _ring)
    outcome = Outcome()
    with _ready(name) as (reader, target, folder):
        _limit_memory()
        for index in indices:
            counts[_INDEX] = index
            files = draw_input(target, name, seed, index)
            label = f"{name}-{seed}-{index}"
            if lost and index == indices.start:
                save_input(kept, label, files)
                continue
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            finding = _run_one(reader, target, folder, files)
            signal.setitimer(signal.ITIMER_PROF, 0)
            counts[_PEAK_BYTES] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if finding is None:
                counts[_READ] += 1
            elif finding == ():
                counts[_REFUSED] += 1
            else:
                each = Finding(name, index, *finding)
                if outcome.add(each):
                    save_input(kept, label, files)
                sender.send(each)


def _ring(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError


def _limit_memory() -> None:
    """Let this process take `MEMORY_BYTES` more than it has."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def _ready(name: str) -> Iterator[tuple[Reader, Target, Path]]:
    """Yield a reader with its target and a folder for inputs; every seed has to be readable."""
    reader = READERS[name]
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="reader-fuzz-", dir=place) as temporary:
        fixed, folder = Path(temporary, "fixed"), Path(temporary, "input")
        fixed.mkdir()
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = reader.prepare(fixed)
            for seed in target.seeds:
                _write(folder, seed)
                target.read(folder)
            yield reader, target, folder


def _run_one(
    reader: Reader, target: Target, folder: Path, files: Files
) -> tuple[str, str] | tuple[()] | None:
    """Read an input; return None, () where it is refused, or a finding's kind and traceback."""
    _write(folder, files)
    try:
        target.read(folder)
    except reader.errors as error:
        if not _out_of_memory(error):
            return ()
        return f"memory: {_where(error)}", traceback.format_exc()
    except (Exception, TooSlowError) as error:  # noqa: BLE001  (what is looked for)
        return f"{type(error).__name__}: {_where(error)}", traceback.format_exc()
    return None


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an error was made of one that says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__
    return False


def _where(error: BaseException) -> str:
    """Return the last place in the project's code that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}lora_export{os.sep}" in frame.filename]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.name}:{last.lineno}"


def _write(folder: Path, files: Files) -> None:
    for path in folder.iterdir():
        if path.name in files:
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for file, data in files.items():
        (folder / file).write_bytes(data)
