"""The lock of a store: one run, or one clean-up, at a time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UsageError
from lora_export.core.files import storage_errors
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.ondevice.file_locks import close_lock, try_lock
from lora_export.ondevice.file_opening import open_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["alone_in"]

_LOCK: Final = f"{FLEET_FOLDER}/lock"


@contextlib.contextmanager
def alone_in(store: Path) -> Iterator[None]:
    """Hold the store's lock; refuse where another run has it.

    Raises:
        StorageError: The store cannot be written.
        UsageError: Another run has it.
    """
    with storage_errors(str(store)):
        descriptor = open_lock(store / _LOCK)
    try:
        try:
            try_lock(descriptor)
        except BlockingIOError as error:
            msg = f"another run is using the store {str(store)!r}"
            raise UsageError(msg, hint=f"Watch it: lora-export fleet status {store}") from error
        yield
    finally:
        close_lock(descriptor)
