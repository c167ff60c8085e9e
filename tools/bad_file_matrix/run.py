"""Run cases in processes that fork: the libraries are imported once in each."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import shlex
import shutil
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tools.bad_file_matrix.calls import call, preload
from tools.bad_file_matrix.commands import COMMANDS, Target
from tools.bad_file_matrix.forked import Limits, run_forked
from tools.bad_file_matrix.inputs import HUB
from tools.bad_file_matrix.judge import Seen, allowed_limits, judge
from tools.bad_file_matrix.kinds import GROWING, KINDS, UNREADABLE
from tools.bad_file_matrix.sandbox import Sandbox, Tree, make_sandbox, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tools.bad_file_matrix.cases import Case

__all__ = ["Result", "run_cases"]

_GOOD_LIMITS: Final = Limits(120, 8 << 30)
_HUB_NAME: Final = "tiny/bert"
_CACHE: Final = "graph_cache"
_LARGE: Final = (".plan", ".timing", ".tar", ".data", ".bin")
"""Files whose length nothing bounds."""

_HASHED_NOT: Final = ("lora_export.json", "bundle.json", ".lora_export.lock")
"""Files that no manifest has the hash of: the manifest itself, the bundle's index, a lock."""


class Result(NamedTuple):
    """A case, how it ended and what was wrong with it."""

    case: Case
    code: int
    seconds: float
    message: str
    faults: tuple[str, ...]
    stack: str = ""


def run_cases(pristine: Path, cases: Sequence[Case], jobs: int) -> Iterator[Result]:
    """Run the cases in `jobs` processes; yield each result as it comes."""
    context = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    processes = []
    for index in range(min(jobs, len(cases))):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(pristine, cases[index::jobs], sender))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    while pipes:
        for pipe in multiprocessing.connection.wait(pipes):
            assert isinstance(pipe, Connection)  # noqa: S101  (nothing else was given)
            if (result := _received(pipe)) is None:
                pipes.remove(pipe)
            else:
                yield result
    for process in processes:
        process.join()
        if process.exitcode:
            msg = "a process that runs cases has failed"
            raise RuntimeError(msg)


def _received(pipe: Connection) -> Result | None:
    """Return the next result, or None where there are no more."""
    try:
        result: Result = pipe.recv()
    except EOFError:
        return None
    return result


def _work(pristine: Path, cases: Sequence[Case], sender: Connection) -> None:
    root = Path(tempfile.mkdtemp(prefix="bad-files-"))
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(root / "world" / HUB),
    }  # fmt: skip
    preload(torch=any(COMMANDS[case.command].torch for case in cases))
    gc.freeze()
    try:
        sandbox = make_sandbox(pristine, root)
        good_run = functools.cache(functools.partial(_good_run, sandbox))
        for case in cases:
            sender.send(_run(sandbox, case, good_run))
    finally:
        shutil.rmtree(root, ignore_errors=True)
        sender.close()


def _good_run(sandbox: Sandbox, target: Target) -> Seen:
    """Return what the command does with the valid inputs; it has to succeed."""
    seen = _observe(sandbox, target, "", _GOOD_LIMITS, before=sandbox.whole)
    if seen.outcome.code not in {0, 4}:
        msg = f"{target.command} fails with the valid {target.input}: {seen.outcome}"
        raise RuntimeError(msg)
    return seen


def _run(sandbox: Sandbox, case: Case, good_run: Callable[[Target], Seen]) -> Result:
    good = good_run(case.target)
    path = os.path.normpath(f"{case.input}/{case.path}")
    with sandbox.spoiled(path, case.kind) as before:
        is_large = case.kind == "sparse" and case.path.endswith(_LARGE)
        limits = Limits(*allowed_limits(good.outcome, is_large=is_large))
        seen = _observe(
            sandbox, case.target, path, limits, before, obeys_modes=case.kind == UNREADABLE
        )
    is_hashed = COMMANDS[case.command].hashes and _is_hashed(sandbox, case)
    faults = tuple(
        judge(
            seen, good,
            is_hashed=is_hashed, is_named=not case.path, is_moving=case.kind == GROWING,
        )
    )  # fmt: skip
    lines = seen.outcome.err.replace(str(sandbox.world.parent), "").strip().splitlines()
    message = "\n".join(lines[-12:])
    outcome = seen.outcome
    return Result(case, outcome.code, outcome.seconds, message, faults, outcome.stack)


def _observe(
    sandbox: Sandbox,
    target: Target,
    path: str,
    limits: Limits,
    before: dict[str, tuple[int, ...]],
    *,
    obeys_modes: bool = False,
) -> Seen:
    """Run the command; return what it did, and make the sandbox whole again."""
    command = COMMANDS[target.command]
    given = _HUB_NAME if target.input == HUB else str(sandbox.world / target.input)
    places = {"x": given, "w": sandbox.world, "o": sandbox.out}
    words = [word.format_map(places) for word in shlex.split(command.words)]
    around = tree_of(sandbox.outside)
    outcome = run_forked(
        functools.partial(call, words, double=command.double), limits, sandbox.scratch,
        environment=_environment(sandbox), folder=sandbox.scratch, obeys_modes=obeys_modes,
    )  # fmt: skip
    after = tree_of(sandbox.world)
    changed = [
        each for each in _difference(before, after)
        if each != path and not each.endswith(".lock") and not each.startswith(_CACHE)
        and not (path and sandbox.is_rewritten(each))  # the good run names all that is written
    ]  # fmt: skip
    strayed = _difference(around, tree_of(sandbox.outside))
    if strayed:
        sandbox.make_outside()
    seen = Seen(outcome, tree_of(sandbox.out), tuple(changed), tuple(strayed))
    sandbox.restore()
    return seen


def _difference(before: Tree, after: Tree) -> list[str]:
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )


def _is_hashed(sandbox: Sandbox, case: Case) -> bool:
    """Return whether a bad file is what a manifest or an index has the hash of."""
    path = sandbox.pristine / case.input / case.path
    return KINDS[case.kind].alters and path.is_file() and path.name not in _HASHED_NOT


def _environment(sandbox: Sandbox) -> dict[str, str]:
    return {
        "HOME": str(sandbox.scratch),
        "LORA_EXPORT_CACHE": str(sandbox.world / _CACHE),
        "GITHUB_STEP_SUMMARY": str(sandbox.scratch / "summary.md"),
    }
