"""Judgement of a command that was given a bad file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.bad_file_matrix.forked import Outcome
    from tools.bad_file_matrix.sandbox import Tree

__all__ = ["Seen", "allowed_limits", "judge"]

_CODES: Final = frozenset({0, 2, 3, 4, 5, 6, 7})
_VERDICTS: Final = frozenset({5, 6})
"""Codes of commands that did their work, and found the graph wrong or slow."""

_BAD_WORDS: Final = (
    ("Traceback (most recent", "a traceback"),
    ("This is a bug", "'This is a bug'"),
    ("Exception ignored", "an exception that is ignored"),
    ("Warning: ", "a warning of a library"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONGEST: Final = 3_000
_LEAST_SECONDS: Final = 5.0
_LARGE_SECONDS: Final = 40.0
_TIMES_AS_LONG: Final = 3
_MORE_MEMORY_BYTES: Final = 1 << 30


class Seen(NamedTuple):
    """A case as it was seen.

    Attributes:
        outcome: What became of the process.
        left: What lies in the folder for outputs.
        changed: Paths of the inputs that changed, the spoiled one and locks left out.
        strayed: What changed outside of both.
    """

    outcome: Outcome
    left: Tree
    changed: tuple[str, ...]
    strayed: tuple[str, ...]


def allowed_limits(good: Outcome, *, is_large: bool = False) -> tuple[float, int]:
    """Return the seconds and the bytes of memory that a case may take, by its good run.

    Args:
        good: The good run.
        is_large: Whether a file has gigabytes that a file of its kind may have: they are hashed.
    """
    least = _LARGE_SECONDS if is_large else _LEAST_SECONDS
    seconds = max(least, _TIMES_AS_LONG * good.seconds)
    return seconds, good.memory_bytes + _MORE_MEMORY_BYTES


def judge(
    seen: Seen, good: Seen, *, is_hashed: bool, is_named: bool = False, is_moving: bool = False
) -> Iterator[str]:
    """Yield what is wrong, in words that are the same for the same fault.

    Args:
        seen: The case.
        good: The same command with valid inputs: what it changes, it may change.
        is_hashed: Whether it compares the spoiled file with a hash.
        is_moving: Whether the file changes while the command runs: what was done before it changed
            may be there.
        is_named: Whether the spoiled path is one that the user names: links there are followed.
    """
    outcome = seen.outcome
    yield from _ends(outcome)
    yield from _says(outcome)
    if seen.strayed and not is_named:
        yield f"changes what a link leads to: {_shown(list(seen.strayed))}"
    if outcome.ended is not None:
        return  # what a killed process leaves is another matter
    staged = [path for path in (*seen.left, *seen.changed) if ".lora-export-" in path]
    if staged:
        yield "leaves a staging folder"
    may_change = {path.partition("/")[0] for path in good.changed}
    is_done = outcome.code == 0 or outcome.code in _VERDICTS
    unexpected = [
        path for path in seen.changed if not is_done or path.partition("/")[0] not in may_change
    ]
    if unexpected and not (is_named and is_done) and not is_moving:
        yield f"{'fails and ' * (not is_done)}changes {_shown(unexpected)}"
    if seen.left and not is_done:
        yield f"fails and leaves {min(seen.left)}"
    if is_hashed and outcome.code == 0:
        yield "passes a file that is not what its hash says"


def _ends(outcome: Outcome) -> Iterator[str]:
    if outcome.ended is not None:
        yield {"time": "takes too long", "sleep": "hangs", "memory": "takes too much memory"}[
            outcome.ended
        ]
    elif outcome.code < 0:
        yield f"is killed by signal {-outcome.code}"
    elif outcome.code not in _CODES:
        yield f"exit {outcome.code}"


def _says(outcome: Outcome) -> Iterator[str]:
    if outcome.ended is not None or outcome.code < 0:
        return
    both = outcome.out + outcome.err
    for words, what in _BAD_WORDS:
        if words in both:
            yield f"prints {what}"
    count = len(re.findall(r"^error: ", outcome.err, re.MULTILINE))
    if outcome.code != 0 and (count > 1 or (count == 0 and not outcome.out.strip())):
        yield f"prints {count} messages"
    if outcome.code == 0 and count:
        yield "prints an error and succeeds"
    if len(outcome.err) > _LONGEST:
        yield "prints a message that is too long"
    if _CONTROL.search(both):
        yield "prints control characters"


def _shown(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
