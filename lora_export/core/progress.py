"""The protocol by which long work reports its progress."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A listener for the progress of a stage: its name and size, its advance, and notes."""

    def start(self, what: str, total_bytes: int | None = None) -> None:
        """Begin a stage; it ends when the next begins."""

    def advance(self, count_bytes: int) -> None:
        """Report that so many bytes are done."""

    def note(self, text: str) -> None:
        """Report something that the user should know."""


class Silent:
    """Tells nobody."""

    def start(self, what: str, total_bytes: int | None = None) -> None:
        """Do nothing."""

    def advance(self, count_bytes: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
