"""Steps after a committed change: what goes wrong there is a note, and never undoes the change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.commands.after_change import ReportUpdates
from lora_export.core.errors import CheckpointError
from lora_export.core.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path

CHANGE = "adapter 'a' was removed"
MISSING = "its report could not be written"


class Notes(Silent):
    """Progress that keeps its notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device", "report.html"), "cannot write report.html"),
        (CheckpointError("report.html is damaged"), "report.html is damaged"),
    ],
)
def test_error_becomes_a_note(tmp_path: Path, error: Exception, why: str) -> None:
    told = Notes()
    after = ReportUpdates(tmp_path, CHANGE, told)
    with after.step(MISSING):
        raise error
    (note,) = after.notes()
    assert note.startswith(f"{CHANGE}, but {MISSING}: {why}")
    assert told.texts == [f"warning: {note}"]


def test_interrupt_says_that_the_change_is_made(tmp_path: Path) -> None:
    told = Notes()
    after = ReportUpdates(tmp_path, CHANGE, told)
    with pytest.raises(KeyboardInterrupt), after.step(MISSING):
        raise KeyboardInterrupt
    assert told.texts == [f"warning: {CHANGE}, but {MISSING}: interrupted"]
