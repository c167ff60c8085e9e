"""What goes wrong on a device: one class, with what is wrong, what to do next and a kind.

The kinds are those of the exit codes; the host's code translates them into its own errors.
"""

from __future__ import annotations

from typing import Final

__all__ = ["EXIT_CODES", "DeviceError"]

EXIT_CODES: Final[dict[str, int]] = {
    "failed": 1,
    "usage": 2,
    "input": 3,
    "storage": 3,
    "unsupported": 4,
    "missing": 7,
}
"""The exit code of each kind: ``missing`` is a runtime that is not there, ``input`` a damaged or
unfitting file, ``storage`` a disk that refuses."""


class DeviceError(Exception):
    """A foreseen failure.

    Args:
        message: What is wrong, with the offending name and value.
        hint: What to do next.
        kind: A key of `EXIT_CODES`.
    """

    def __init__(self, message: str, *, hint: str | None = None, kind: str = "failed") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind

    @property
    def exit_code(self) -> int:
        """The exit code of its kind."""
        return EXIT_CODES[self.kind]

    def __str__(self) -> str:
        """Return the message, followed by the hint where there is one."""
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"
