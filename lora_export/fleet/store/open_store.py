"""The store that a fleet names: a directory, or a URL."""

from __future__ import annotations

from pathlib import Path

from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.store.artifacts import ArtifactStore
from lora_export.fleet.store.directory import DirectoryObjects
from lora_export.fleet.store.url import UrlObjects, is_url

__all__ = ["open_store"]


def open_store(place: str) -> ArtifactStore:
    """Return the artifacts of a fleet; nothing is written yet.

    Args:
        place: The store of the fleet: of a directory, artifacts lie in its folder ``.fleet``.

    Raises:
        UsageError: It is a URL of a protocol that is not known.
        MissingRuntimeError: The library of its protocol is not installed.
        StorageError: It cannot be opened.
    """
    if is_url(place):
        return ArtifactStore(UrlObjects(place))
    return ArtifactStore(DirectoryObjects(Path(place) / FLEET_FOLDER))
