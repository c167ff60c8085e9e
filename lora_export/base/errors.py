"""Every failure that the project foresees, with its exit code.

    LoraExportError                 1   unforeseen by a more precise class
    ├── UsageError                  2   the command line or the recipe is wrong
    ├── InputError                  3   a file is missing, damaged or does not fit
    │   ├── CheckpointError             the base checkpoint
    │   ├── AdapterError                an adapter
    │   ├── ExportDirectoryError        an export directory or its manifest
    │   ├── HubError                    what an id of the hub means is not to be had
    │   └── StorageError                the disk: full, read-only, not permitted
    ├── UnsupportedError            4   well-formed, but not something that is handled
    │   └── TiedParameterError          a change to one of several names of a parameter
    ├── ParityError                 5   the graph does not compute what the adapter computes
    ├── LatencyError                6   the graph is slower than its gate allows
    └── MissingRuntimeError         7   a package that this step needs is not installed

A message says what is wrong, the offending name and value, and what to do next. Foreign errors are
translated once, in the module that owns the library, with ``raise … from``.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "CheckpointError",
    "ExportDirectoryError",
    "HubError",
    "InputError",
    "LatencyError",
    "LoraExportError",
    "MissingRuntimeError",
    "ParityError",
    "StorageError",
    "TiedParameterError",
    "UnsupportedError",
    "UsageError",
]


class LoraExportError(Exception):
    """Base of every foreseen failure.

    Args:
        message: What is wrong, with the offending name and value.
        hint: What to do next; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, followed by the hint where there is one."""
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(LoraExportError):
    """The command line, the recipe or a combination of options is wrong."""

    exit_code = 2


class InputError(LoraExportError):
    """An input is missing, damaged, or does not fit the others."""

    exit_code = 3


class CheckpointError(InputError):
    """The base checkpoint is missing, damaged or incomplete."""


class AdapterError(InputError):
    """An adapter is damaged, or does not fit its base."""


class ExportDirectoryError(InputError):
    """An export directory is missing, damaged, or is not one of ours."""


class HubError(InputError):
    """What an id of the Hugging Face hub means cannot be had."""


class StorageError(InputError):
    """The disk refused: full, read-only or not permitted."""


class UnsupportedError(LoraExportError):
    """The input is well-formed, but nothing here handles it."""

    exit_code = 4


class TiedParameterError(UnsupportedError):
    """An adapter changes one of several names of a parameter: the model has to be untied first."""


class ParityError(LoraExportError):
    """A graph does not reproduce the unmerged adapter within its tolerance."""

    exit_code = 5


class LatencyError(LoraExportError):
    """A graph is slower than its latency gate allows."""

    exit_code = 6


class MissingRuntimeError(LoraExportError):
    """A package that this step needs is not installed."""

    exit_code = 7
