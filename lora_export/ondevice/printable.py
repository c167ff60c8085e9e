r"""Foreign text made safe to print: the one place, for the terminal, JSON, pages and reports.

Names, labels, paths and messages of libraries come from files that strangers wrote. Printed as they
are, an escape sequence redraws the terminal, a line break adds a line that looks like ours, a mark
of direction reverses what follows, and ``::error::`` at the beginning of a line is a command to the
runner of a CI job.

    `printable`        text for one line: what cannot be seen is escaped, as in ``\x1b``; cut
    `printable_line`   the same for a whole line of output, which is no command to a CI runner
    `json_text`        JSON in visible ASCII
    `shell_command`    words as a command that can be pasted

Text is escaped where it leaves: `text_table.aligned` (cells), the command line's console (lines),
the errors (messages), `report.markup` (pages). An escaped text stays as it is when it is escaped
again. A backslash is not escaped, so that paths stay readable: an escape says what is there, and
is not an encoding to read back; ``--json`` has the exact values.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CELL_LIMIT",
    "HINT_LIMIT",
    "LINE_LIMIT",
    "FinishedLine",
    "json_text",
    "printable",
    "printable_line",
    "shell_command",
]

LINE_LIMIT: Final = 2_000
"""How many characters of a line, or of an error's message, are shown."""

HINT_LIMIT: Final = 10_000
"""How many characters of an error's hint are shown: hints hold commands, of use as a whole."""

CELL_LIMIT: Final = 500
"""How many characters of a cell of a table are shown."""

_IGNORABLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that are letters, marks or symbols to Unicode, and that show nothing."""

_RUNNER_COMMAND: Final = re.compile(r"(?P<start>^\s*):(?=:)|##(?=\[|vso\[)")
"""How GitHub (``::error::`` at the beginning, ``##[error]`` anywhere) and Azure mark a command."""


_BYTES_OF_PATHS: Final = range(0xDC80, 0xDD00)
"""The surrogates by which Python writes bytes of a path that are not UTF-8."""

_ASCII_END: Final = 0x80


class FinishedLine(str):
    """A line that is complete: its foreign parts are escaped, and it is printed as it is."""

    __slots__ = ()


def printable(text: object, limit: int | None = None, *, keep: str = "") -> str:
    r"""Return text without a character that cannot be seen, on one line.

    Escaped are the characters that ``repr`` escapes (controls, format characters such as marks of
    direction, surrogates, separators other than the space, what is not assigned) and those that
    show nothing. Text that is longer than `limit` loses its middle.

    Args:
        text: What to show.
        limit: The largest length of the result.
        keep: Characters that stay as they are.

    >>> printable("a\x1b[31mb\u202ec\n"), printable("a" * 99 + "bc", 48)
    ('a\\x1b[31mb\\u202ec\\n', 'aaaaaaaaaaa … (84 characters left out) … aaaabc')
    """
    whole = str(text)
    if limit is not None and len(whole) > limit:
        return _cut(whole, limit, keep)
    if whole.isprintable() and (whole.isascii() or not _IGNORABLE.search(whole)):
        return whole
    shown = _escaped(whole, keep)
    return shown if limit is None or len(shown) <= limit else _cut(whole, limit, keep)


def printable_line(text: str, limit: int = LINE_LIMIT) -> FinishedLine:
    r"""Return a line of output: `text` on one line, cut, and no command to a CI job's runner.

    >>> printable_line("::error::x"), printable_line("  a\n##[error]b")
    ('\\x3a:error::x', '  a\\n#\\x23[error]b')
    """
    if isinstance(text, FinishedLine):
        return text
    line = printable(text, limit)
    return FinishedLine(
        _RUNNER_COMMAND.sub(
            lambda found: "#\\x23" if found["start"] is None else f"{found['start']}\\x3a", line
        )
    )


def json_text(document: Any, *, ascii_only: bool = True) -> str:
    r"""Return JSON without a hidden character and without a command to a CI job's runner.

    Args:
        document: What is written.
        ascii_only: Whether every other character than ASCII is escaped too, and not hidden ones
            alone.

    >>> print(json_text({"a": "\x7f\u202e##[error]"}))
    {
     "a": "\u007f\u202e#\u0023[error]"
    }
    """
    text = json.dumps(document, indent=1, ensure_ascii=ascii_only)
    if not ascii_only:
        hidden = {each for each in set(text) if each != "\n" and printable(each) != each}
        text = text.translate({ord(each): json.dumps(each)[1:-1] for each in hidden})
    return text.replace("\x7f", "\\u007f").replace("##", "#\\u0023")  # both in strings alone


def shell_command(words: Iterable[object]) -> str:
    r"""Return words as one line for a shell that reads them again as they are.

    >>> shell_command(["cd", "my models", "a\x1b'b"])
    "cd 'my models' $'a\\x1b\\'b'"
    """
    return " ".join(_shell_word(str(word)) for word in words)


def _shell_word(word: str) -> str:
    if printable(word) == word:
        return shlex.quote(word)
    return f"$'{''.join(map(_shell_escape, word))}'"


def _shell_escape(character: str) -> str:
    r"""Return a character for the shell's ``$'…'``: ``\x`` is a byte there, ``\U`` a character."""
    code = ord(character)
    if character in "\\'":
        return f"\\{character}"
    if printable(character) == character:
        return character
    if code in _BYTES_OF_PATHS:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < _ASCII_END else f"\\U{code:08x}"


def _escaped(text: str, keep: str) -> str:
    return "".join(_escape(each, keep) for each in text)


def _escape(character: str, keep: str) -> str:
    if character in keep or (character.isprintable() and not _IGNORABLE.match(character)):
        return character
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, limit: int, keep: str) -> str:
    """Return the beginning and the end of `text`, escaped, with the number of those between."""
    room = limit - len(_mark(len(text)))
    if room < limit // 3:  # too short to say how many
        return f"{_taken(text, limit - 1, keep)[0]}…"
    head, first = _taken(text, room * 2 // 3, keep)
    tail, last = _taken(text[first:][::-1], room - len(head), keep, reverse=True)
    return f"{head}{_mark(len(text) - first - last)}{tail}"


def _mark(count: int) -> str:
    return f" … ({count} characters left out) … "


def _taken(text: str, room: int, keep: str, *, reverse: bool = False) -> tuple[str, int]:
    """Return as many escaped characters as there is room for, and how many they stand for."""
    shown: list[str] = []
    length = 0
    for each in text[: max(0, room)]:
        escaped = _escape(each, keep)
        if length + len(escaped) > room:
            break
        shown.append(escaped)
        length += len(escaped)
    return "".join(reversed(shown) if reverse else shown), len(shown)
