"""The contract of storage: named objects, each whole or absent.

    name        artifacts/KEY.json, blobs/SHA256: parts separated by ``/``, relative to the place
    upload      a file becomes an object; a reader sees the old object or the new one
    sizes       the objects below a prefix, with their bytes

Two implementations: `lora_export.fleet.store.directory` and `lora_export.fleet.store.url`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["Objects"]


class Objects(Protocol):
    """Named objects. Every method raises `StorageError` where the storage refuses."""

    @property
    def place(self) -> str:
        """Their place, as users name it."""

    def upload(self, source: Path, name: str) -> None:
        """Store a file under a name, in place of what was there."""

    def write(self, name: str, data: bytes) -> None:
        """Store bytes under a name, in place of what was there."""

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Return an object of at most so many bytes; None where there is none."""

    def download(self, name: str, target: Path) -> bool:
        """Copy an object to a new file; return False where there is none."""

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None where there is none."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each object whose name starts with ``prefix/``."""

    def remove(self, names: Collection[str]) -> None:
        """Remove objects; those that are not there are passed over."""
