"""The errors that can also arise on a device; the whole tree is drawn in ``core/errors.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.ondevice.printable import CELL_LIMIT, HINT_LIMIT, LINE_LIMIT, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EXIT_CODES",
    "BundleError",
    "DeviceError",
    "ExportDirectoryError",
    "InputError",
    "LatencyError",
    "LoraExportError",
    "MissingRuntimeError",
    "ParityError",
    "StorageError",
    "UnsupportedError",
    "UsageError",
]

EXIT_CODES: Final[dict[str, int]] = {
    "failed": 1,
    "usage": 2,
    "input": 3,
    "storage": 3,
    "unsupported": 4,
    "missing": 7,
}
"""The exit code of each kind of `DeviceError`: ``missing`` is a runtime that is not there,
``input`` a damaged or unfitting file, ``storage`` a disk that refuses."""


class LoraExportError(Exception):
    """Base of every foreseen failure.

    Names and values come from strangers: message, items and hint are escaped and cut here, each to
    one line (`printable`), so that whoever prints an error needs not.

    Args:
        message: What is wrong, with the offending name and value.
        items: What the message ends with, a line each, such as the first names of a long list.
        hint: What to do next; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, items: Iterable[str] = (), hint: str | None = None) -> None:
        lines = [printable(message, LINE_LIMIT), *(printable(each, CELL_LIMIT) for each in items)]
        self.message = "\n  ".join(lines)
        self.hint = None if hint is None else printable(hint, HINT_LIMIT)
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message, followed by the hint where there is one."""
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(LoraExportError):
    """The command line, the recipe or a combination of options is wrong."""

    exit_code = 2


class InputError(LoraExportError):
    """An input is missing, damaged, or does not fit the others."""

    exit_code = 3


class ExportDirectoryError(InputError):
    """An export directory is missing, damaged, or is not one of ours."""


class BundleError(InputError):
    """A bundle is missing, damaged, hostile, or is not one of ours."""


class StorageError(InputError):
    """The disk refused: full, read-only or not permitted."""


class UnsupportedError(LoraExportError):
    """The input is well-formed, but nothing here handles it."""

    exit_code = 4


class ParityError(LoraExportError):
    """A graph does not reproduce the unmerged adapter within its tolerance."""

    exit_code = 5


class LatencyError(LoraExportError):
    """A graph is slower than its latency gate allows."""

    exit_code = 6


class MissingRuntimeError(LoraExportError):
    """A package that this step needs is not installed."""

    exit_code = 7


class DeviceError(LoraExportError):
    """An error in the code that calls TensorRT, with a kind that stands for an exit code.

    Args:
        message: What is wrong, with the offending name and value.
        hint: What to do next.
        kind: A key of `EXIT_CODES`.
    """

    def __init__(self, message: str, *, hint: str | None = None, kind: str = "failed") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.exit_code = EXIT_CODES[kind]
