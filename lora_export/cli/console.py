"""Progress on stderr, and the one result on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from lora_export.cli.terminal import answer, answer_json, say
from lora_export.cli.text import size
from lora_export.ondevice.printable import printable_line

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Console"]

_BAR: Final = 80
"""The largest number of characters of a description in front of the progress bar."""


class Console:
    """Progress for people: a bar on a terminal, plain lines otherwise; silent with ``--quiet``."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._terminal = sys.stderr.isatty()

    def start(self, what: str, total_bytes: int | None = None) -> None:
        """Begin a stage."""
        if self._quiet:
            return
        if not self._terminal:
            suffix = f" ({size(total_bytes)})" if total_bytes else ""
            say(f"{what}{suffix}")
            return
        self._start_bar()
        if self._task is not None:
            self._bar.update(self._task, completed=1, total=1)
        self._task = self._bar.add_task(printable_line(what, _BAR), total=total_bytes)

    def advance(self, count_bytes: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count_bytes)

    def note(self, text: str) -> None:
        """Print a line on stderr, whatever the settings."""
        if self._bar is not None:
            line = printable_line(text)
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            say(text)

    def finish(self, document: dict[str, Any], lines: list[str]) -> None:
        """Print the result: `document` with ``--json``, else `lines`, each as one line."""
        self.close()
        if self.as_json:
            answer_json(document)
        else:
            answer(lines)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def __enter__(self) -> Self:
        """Return the console."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the terminal."""
        self.close()

    def _start_bar(self) -> None:
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                # This stream also while the exporter's is silenced; the bar moves the cursor.
                console=RichConsole(file=getattr(sys.stderr, "unprotected", sys.stderr)),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.start()
