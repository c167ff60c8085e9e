"""Steps after a change is committed, such as refreshing reports: an error there is a warning.

The adapter is in the export by then and stays there, even if a report cannot be written because the
disk is full or a report is damaged. The command exits 0 and names what is missing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import LoraExportError
from lora_export.core.journal import is_waiting
from lora_export.ondevice.file_opening import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lora_export.core.progress import Progress

__all__ = ["ReportUpdates"]

_LEFT: Final = (
    "some of the files that this change replaces or removes could not be removed; the next change "
    "of the export does it"
)


class ReportUpdates:
    """The steps after a change of an export, and what could not be done.

    Args:
        export_dir: The export directory.
        change: The change, as a sentence without full stop: "the adapter a was removed".
        tell: Told what could not be done.
    """

    def __init__(self, export_dir: Path, change: str, tell: Progress) -> None:
        self._export_dir, self._change, self._tell = export_dir, change, tell
        self._notes: list[str] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Turn an error of the block into a note.

        Ctrl-C ends the command all the same, with a note that the change itself is made.

        Args:
            what: What is missing then: "its report could not be written".
        """
        try:
            yield
        except OSError as error:
            path = error.filename or self._export_dir
            self._note(f"{self._change}, but {what}: cannot write {path}: {reason_of(error)}")
        except LoraExportError as error:
            self._note(f"{self._change}, but {what}: {error.message}")
        except KeyboardInterrupt:
            self._note(f"{self._change}, but {what}: interrupted")
            raise

    def notes(self) -> tuple[str, ...]:
        """Return what could not be done; files that are left from the change included."""
        if is_waiting(self._export_dir) and not self._notes:
            self._note(f"{self._change}, but {_LEFT}")
        return tuple(self._notes)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._tell.note(f"warning: {text}")
