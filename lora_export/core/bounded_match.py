"""Regular expressions from untrusted files, matched in a process that is ended when it takes long.

Python's engine cannot be interrupted. An expression whose cost is unknown from its text
(`lora_export.core.patterns.ways`) is therefore matched by a second interpreter, which gets
expression and name as text and answers with yes or no. All of its work together may take
`LIMIT_S`; then it is ended, and the expression is refused.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import queue
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Final, cast

from lora_export.core.patterns import WAYS_LIMIT, PatternError, compiled, ways

if TYPE_CHECKING:
    import subprocess

__all__ = ["LIMIT_S", "matches", "slow_match"]

LIMIT_S: Final = 10.0
"""The seconds that all matches of a command may take together in the second process."""

_CACHED: Final = 100_000
_PATTERN_LIMIT: Final = 1 << 12
_TEXT_LIMIT: Final = 512

_PROGRAM: Final = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
compiled = {}
for line in sys.stdin:
    pattern, text = json.loads(line)
    try:
        if pattern not in compiled:
            compiled[pattern] = re.compile(pattern)
        answer = compiled[pattern].fullmatch(text) is not None
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        answer = " ".join(str(error).split()) or type(error).__name__
    print(json.dumps(answer), flush=True)
"""


class _Matcher:
    """A second interpreter, and the seconds that it has left."""

    def __init__(self) -> None:
        self._left_s = LIMIT_S
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def ask(self, pattern: str, text: str) -> bool | str:
        """Return whether `pattern` matches the whole of `text`, or why it is not an expression.

        Raises:
            PatternError: The time is up, or the process ended.
        """
        if self._left_s <= 0:
            raise PatternError(_too_long())
        process = self._process or self._start()
        started = time.monotonic()
        try:
            questions = cast("IO[str]", process.stdin)
            questions.write(json.dumps([pattern, text]) + "\n")
            questions.flush()
            line = self._answers.get(timeout=self._left_s)
        except queue.Empty:
            self._left_s = 0.0
            self.end()
            raise PatternError(_too_long()) from None
        except OSError as error:
            self.end()
            msg = f"it cannot be matched: {error}"
            raise PatternError(msg) from error
        self._left_s -= time.monotonic() - started
        if not line:
            self.end()
            msg = "it cannot be matched: the process that matches it ended"
            raise PatternError(msg)
        answer: bool | str = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        import subprocess

        process = subprocess.Popen(  # noqa: S603  (our own interpreter and program)
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        arguments = (cast("IO[str]", process.stdout), self._answers)
        threading.Thread(target=_read, args=arguments, daemon=True).start()
        self._process = process
        return process

    def end(self) -> None:
        """End the process, if there is one; the next question starts another."""
        process, self._process = self._process, None
        self._answers = queue.Queue()
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()


def _read(stream: IO[str], answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)
    answers.put("")


def _too_long() -> str:
    return f"it takes longer than {LIMIT_S:.0f} s to match"


_MATCHER: Final = _Matcher()
atexit.register(_MATCHER.end)


def matches(pattern: str, text: str, *, core: str | None = None) -> bool:
    """Return whether an expression matches the whole of a text.

    It is matched here where its cost is known and small, else by `slow_match`.

    Args:
        pattern: The expression.
        text: A module's path.
        core: The part of `pattern` that a stranger wrote; all of it by default.

    Raises:
        PatternError: It is not an expression, or takes longer than `LIMIT_S`.
    """
    written = pattern if core is None else core
    is_cheap = (
        len(written) <= _PATTERN_LIMIT and len(text) <= _TEXT_LIMIT and ways(written) <= WAYS_LIMIT
    )
    if not is_cheap:
        return slow_match(pattern, text)
    return compiled(pattern).fullmatch(text) is not None


@functools.lru_cache(maxsize=_CACHED)
def slow_match(pattern: str, text: str) -> bool:
    """Return whether an expression matches the whole of a text, in a process of its own.

    Raises:
        PatternError: It is not an expression, or matching takes longer than is left of `LIMIT_S`.
    """
    answer = _MATCHER.ask(pattern, text)
    if isinstance(answer, str):
        raise PatternError(answer)
    return answer
