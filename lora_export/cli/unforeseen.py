"""Errors that no module has translated: the system's, memory's, and bugs.

Readers and writers translate their own errors, with a hint that fits. This is the last place, for
what they do not foresee: a folder that vanishes, a disk that fails, memory that does not suffice.
"""

from __future__ import annotations

from typing import Final

from lora_export.core.errors import LoraExportError, MissingRuntimeError, StorageError
from lora_export.ondevice.file_opening import reason_of

__all__ = ["explain"]

_NO_MEMORY: Final = ("can't allocate memory", "bad allocation", "bad_alloc", "out of memory")
"""Texts of libraries in C++ for too little memory, in errors that are no `MemoryError`."""


def explain(error: Exception) -> tuple[str, LoraExportError]:
    """Return the kind of an error for ``--json``, and the error that is reported for it.

    An `OSError` becomes a `StorageError` that names its path. Memory that does not suffice has a
    sentence of its own, with the exit code of a full disk. For anything else an unsupported
    version of a library is named first, because it explains it; what is left is a bug.
    """
    name = type(error).__name__
    if isinstance(error, OSError):
        return StorageError.__name__, _storage_error(error)
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return MemoryError.__name__, _memory_error(error)
    from lora_export.core.supported_versions import CORE, unsupported

    if outdated := unsupported(CORE):
        return MissingRuntimeError.__name__, MissingRuntimeError(outdated[0])
    message = f"unexpected {name}: {error}"
    hint = "This is a bug in lora-export; run again with --debug and report the traceback."
    return name, LoraExportError(message, hint=hint)


def _storage_error(error: OSError) -> StorageError:
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    message = f"cannot access {' and '.join(map(repr, paths))}: " if paths else "system error: "
    return StorageError(
        message + reason_of(error),
        hint="Check the path, its permissions and the disk, then run again.",
    )


def _memory_error(error: Exception) -> StorageError:
    detail = f": {error}" if str(error) else ""
    return StorageError(
        f"not enough memory{detail}",
        hint="Stop other programs, or use a machine with more memory.",
    )
