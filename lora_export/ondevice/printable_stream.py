"""The standard streams, made safe: nothing invisible leaves, a reader that is gone is not an error.

`run_protected` is called once, by the program's entry point. Our own lines are escaped
before they come here; the net is for what libraries, tracebacks and ``argparse`` print.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import TYPE_CHECKING, Final, TextIO

from lora_export.ondevice.device_errors import StorageError
from lora_export.ondevice.printable import FinishedLine, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["PrintableStream", "run_protected"]

_KEPT: Final = "\n\r\t"
_BETWEEN_BARS: Final = re.compile(r"\n*(?:\x1b\[A)+")
"""How tqdm goes from one of its progress bars to the one above."""

_LAST_STANDARD: Final = 2


class PrintableStream:
    """A text stream that escapes what cannot be seen.

    Writing never raises `OSError`: the first one is kept in `failure`, and what comes later is
    dropped, so that work goes on and ends when nobody reads how it goes.
    """

    def __init__(self, unprotected: TextIO) -> None:
        self.unprotected = unprotected
        self.failure: OSError | None = None

    encoding = "utf-8"
    errors = "backslashreplace"

    def write(self, text: str) -> int:
        """Write `text`; a `FinishedLine` as it is.

        Raises:
            TypeError: It is not text (click tries whether a stream takes bytes).
        """
        finished = isinstance(text, FinishedLine) or _BETWEEN_BARS.fullmatch(text)
        if self.failure is None:
            try:
                self.unprotected.write(text if finished else printable(text, keep=_KEPT))
            except OSError as error:
                self._fail(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for each in lines:
            self.write(each)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.failure is None:
            try:
                self.unprotected.flush()
            except OSError as error:
                self._fail(error)

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self.unprotected.isatty()

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self.unprotected.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True

    def _fail(self, error: OSError) -> None:
        """Keep the error; let what is buffered still go somewhere, for Python's own last flush."""
        self.failure = error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.unprotected.fileno())
            os.close(nowhere)


def run_protected(run: Callable[[], int]) -> int:
    """Run a program with `PrintableStream`s as ``sys.stdout`` and ``sys.stderr``; return its code.

    The code is 3 where the program succeeds and its result cannot be written. A reader that has
    gone (``| head -1``) has read what it wanted: the code stays.
    """
    _open_closed_descriptors()
    stdout, stderr = _protected(sys.stdout), _protected(sys.stderr)
    sys.stdout, sys.stderr = stdout, stderr
    code = run()
    stdout.flush()
    failure = stdout.failure
    if failure is not None and not isinstance(failure, BrokenPipeError):
        why = failure.strerror or str(failure)
        stderr.write(f"error: the result cannot be written to the standard output: {why}\n")
        code = code or StorageError.exit_code
    stderr.flush()
    return code


def _open_closed_descriptors() -> None:
    """Open ``/dev/null`` on the standard descriptors that the caller closed.

    Else the next file that is opened would get such a number, and what a library prints would land
    in that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(descriptor, True)  # noqa: FBT003  (the function's only form)
    os.close(descriptor)


def _protected(stream: TextIO | None) -> PrintableStream:
    if stream is None:  # it was closed when the program started
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (to the end)
    if isinstance(stream, PrintableStream):
        return stream
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:  # a terminal that cannot show a character gets its escape
        reconfigure(errors="backslashreplace")
    return PrintableStream(stream)
