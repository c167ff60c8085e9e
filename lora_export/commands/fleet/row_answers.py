"""The answer to a row: its result, or the error that ended it, as JSON values; and its log."""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING, Any

from lora_export.core.errors import LoraExportError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RowLog", "answer_of_error", "guarded"]


class RowLog:
    """Progress as lines of a text.

    Args:
        stream: What takes them.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def start(self, what: str, total_bytes: int | None = None) -> None:  # noqa: ARG002  (a line has no bar)
        """Write the name of the stage."""
        self.note(what)

    def advance(self, count_bytes: int) -> None:
        """Write nothing."""

    def note(self, text: str) -> None:
        """Write a line."""
        self._stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._stream.flush()


def guarded(job: Callable[[], dict[str, Any]], log: RowLog) -> dict[str, Any]:
    """Return the answer of a job; an error of any kind becomes one that names it."""
    try:
        return {"status": "done", **job()}
    except LoraExportError as error:
        return answer_of_error(error)
    except MemoryError:
        memory = StorageError("memory does not suffice for this row")
        return {**answer_of_error(memory), "kind": "MemoryError"}
    except Exception as error:  # noqa: BLE001  (the row is the boundary: others go on)
        import traceback

        log.note(traceback.format_exc())
        message = f"unexpected {type(error).__name__}: {error}"
        return answer_of_error(
            LoraExportError(message, hint="This is a bug; the row's log has more.")
        )


def answer_of_error(error: LoraExportError) -> dict[str, Any]:
    """Return the answer of a row that an error ended."""
    said = f"{error.message}\n{error.hint}" if error.hint else error.message
    return {
        "status": "failed",
        "exit_code": error.exit_code,
        "message": said,
        "kind": type(error).__name__,
    }
