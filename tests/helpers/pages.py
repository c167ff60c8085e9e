"""Code blocks of the documentation: read from Markdown, and run.

What follows the language of a block says what a test does with it::

    ```sh run                  a line each; `lora-export` in this process, the rest in bash
    ```sh run: exit 5          the last line ends with that code
    ```python run              the blocks of a page share their names
    ```text output             what the block above prints, in this order; `…` stands for anything
    ```yaml save: recipe.yaml  is written there
    ```sh run-slow             as run; the page is run with the slow tests
    ```sh not-run: why         is not run
    <!-- run: COMMAND -->      is run, and not shown

Measured numbers differ from run to run: those with a decimal point, an exponent or a unit behind
them match any other, and so do percents. A busy machine is no fault of a page: builds are run with
a latency gate that none fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.cli import run as run_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["EXECUTABLE", "Block", "first_missing", "read_blocks", "run_page", "untagged"]

EXECUTABLE: Final = frozenset({"sh", "bash", "shell", "console", "python", "pycon"})
"""Languages whose blocks say whether they run."""

_ITEM: Final = re.compile(
    r"^(?P<fence>`{3,})(?P<language>[\w+-]*)[ \t]*(?P<tag>[^\n]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$"
    r"|<!-- run: (?P<hidden>.*?) -->",
    re.DOTALL | re.MULTILINE,
)
_NUMBER: Final = re.compile(
    r"[+-]?\d+\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+|\d+(?=(?: ?(?:ms|s|kB|MB|GB|%)|-bit)\b)"
)
_TIME_LIMIT_S: Final = 120
_BYTES: Final = re.compile(r"\b[0-9a-f]{12,}\b")


@dataclass(frozen=True)
class Block:
    """A block of code, or a hidden command.

    Attributes:
        line: The line of the page that it begins on.
        language: As the fence names it; ``sh`` for a hidden command.
        kind: ``run``, ``run-slow``, ``output``, ``save``, ``not-run``, or ``""`` without a tag.
        argument: What stands behind the colon of the tag.
        text: What is in it.
    """

    line: int
    language: str
    kind: str
    argument: str
    text: str


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    source = page.read_text("utf-8")
    blocks = []
    for found in _ITEM.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        if found["hidden"] is not None:
            blocks.append(Block(line, "sh", "run", "", found["hidden"]))
            continue
        kind, _, argument = found["tag"].partition(":")
        blocks.append(Block(line, found["language"], kind.strip(), argument.strip(), found["text"]))
    return blocks


def untagged(page: Path) -> list[str]:
    """Return the blocks that do not say whether they run, and tags without a meaning."""
    kinds = {"run", "run-slow", "output", "save", "not-run"}
    wrong = []
    for block in read_blocks(page):
        if block.language in EXECUTABLE and block.kind not in kinds - {"output"}:
            wrong.append(f"{page.name}:{block.line}: says neither run nor not-run: why")
        elif block.kind and block.kind not in kinds:
            wrong.append(f"{page.name}:{block.line}: unknown tag {block.kind!r}")
        elif block.kind in {"not-run", "save"} and not block.argument:
            wrong.append(f"{page.name}:{block.line}: {block.kind} without its reason or file")
    return wrong


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in `folder`, and compare what they print with what is shown."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in read_blocks(page):
        where = f"{page.name}:{block.line}"
        if block.kind == "save":
            file = folder / block.argument
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, "utf-8")
        elif block.kind == "output":
            missing = first_missing(block.text, printed)
            assert missing is None, f"{where}: not printed: {missing}\n--- printed:\n{printed}"
        elif block.kind in {"run", "run-slow"}:
            with _in_folder(folder):
                if block.language == "python":
                    printed = _run_python(block.text, names, where)
                else:
                    printed = _run_shell(block, where, folder)


def first_missing(shown: str, printed: str) -> str | None:
    """Return the first line that is shown and not printed in this order; None where all are."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if line.strip() and line.strip() != "…" and not any(_same(line, each) for each in lines):
            return line
    return None


def _same(shown: str, printed: str) -> bool:
    parts = [re.escape(_plain(part)) for part in shown.split("…")]
    return re.fullmatch(".*".join(parts), _plain(printed)) is not None


def _plain(line: str) -> str:
    return " ".join(_BYTES.sub("#", _NUMBER.sub("#", line)).split())


def _commands(text: str) -> Iterator[str]:
    """Yield the commands of a block: a line each, continued ones joined."""
    for line in text.replace("\\\n", " ").splitlines():
        command = line.removeprefix("$ ").strip()
        if command and not command.startswith("#"):
            yield command


def _run_shell(block: Block, where: str, folder: Path) -> str:
    printed = ""
    commands = list(_commands(block.text))
    for number, command in enumerate(commands, start=1):
        code, text = _run_line(command, folder)
        last = number == len(commands) and block.argument.startswith("exit ")
        expected = int(block.argument.removeprefix("exit ")) if last else 0
        assert code == expected, f"{where}: exit code {code}: {command}\n{text}"
        printed += text
    return printed


def _run_line(command: str, folder: Path) -> tuple[int, str]:
    words = shlex.split(command, comments=True)
    if words[:2] == ["lora-export", "merge-and-build"] and "--max-ratio" not in words:
        words += ["--max-ratio", "10"] if "--no-latency" not in words else []
    if words[0] == "lora-export" and not {">", "|", "&&", "||"} & set(words):
        handler = signal.getsignal(signal.SIGTERM)
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run_command(words[1:])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return code, out.getvalue() + err.getvalue()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},  # noqa: PTH120
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _run_python(text: str, names: dict[str, Any], where: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, where, "exec"), names)
    return printed.getvalue()


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
