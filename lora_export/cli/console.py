"""Progress on stderr, and the one result on stdout."""

from __future__ import annotations

import sys
import time
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
    """Progress for people: on a terminal a bar for the stage, and a line for each that is done.

    Elsewhere each stage is a plain line when it begins; ``--quiet`` leaves all of it out.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._stage: tuple[str, float] | None = None
        self._terminal = sys.stderr.isatty()

    def start(self, what: str, total_bytes: int | None = None) -> None:
        """Begin a stage; the one before is done."""
        if self._quiet:
            return
        if not self._terminal:
            suffix = f" ({size(total_bytes)})" if total_bytes else ""
            say(f"{what}{suffix}")
            return
        self._end_stage(done=True)
        self._start_bar()
        self._stage = (what, time.monotonic())
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

    def remark(self, text: str) -> None:
        """Print a line on stderr, unless ``--quiet`` is given."""
        if not self._quiet:
            self.note(text)

    def finish(self, document: dict[str, Any], lines: list[str]) -> None:
        """Print the result: `document` with ``--json``, else `lines`, each as one line."""
        self.close(done=True)
        if self.as_json:
            answer_json(document)
        else:
            answer(lines)

    def close(self, *, done: bool) -> None:
        """End the stage, and take the bar off the terminal."""
        if self._bar is not None:
            self._end_stage(done=done)
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        """Return the console."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Restore the terminal; a stage that an error ended is marked."""
        self.close(done=kind is None)

    def _end_stage(self, *, done: bool) -> None:
        """Replace the bar of the stage by a line: its mark, its name, its seconds."""
        if self._stage is None:
            return
        from rich.text import Text

        what, began = self._stage
        mark, style = ("✓", "green") if done else ("✗", "red")
        line = Text.assemble(
            (mark, style),
            f" {printable_line(what, _BAR)}",
            (f"  {time.monotonic() - began:.1f} s", "dim"),
        )
        self._bar.remove_task(self._task)
        self._bar.console.print(line, highlight=False, soft_wrap=True)
        self._stage = self._task = None

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
