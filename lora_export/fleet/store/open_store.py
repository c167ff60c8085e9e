"""The store that a fleet names: a directory, or a URL."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from lora_export.core.errors import UsageError
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.store.artifacts import ArtifactStore
from lora_export.fleet.store.directory import DirectoryObjects
from lora_export.fleet.store.url import UrlObjects, is_url
from lora_export.graph.graph_cache import cache_root

__all__ = ["home_of", "open_store"]

_FILE: Final = "file://"


def home_of(place: str) -> Path:
    """Return the directory of a store's reports, results and logs on this machine.

    Of a directory it is that; of a URL a folder of the cache.
    """
    if not is_url(place):
        return Path(place)
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return cache_root() / "fleets" / name


def open_store(place: str) -> ArtifactStore:
    """Return the artifacts of a fleet; nothing is written yet.

    Args:
        place: The store of the fleet: of a directory, artifacts lie in its folder ``.fleet``.

    Raises:
        UsageError: It is a URL of a protocol that is not known, or ``file://`` without an absolute
            path.
        MissingRuntimeError: The library of its protocol is not installed.
        StorageError: It cannot be opened.
    """
    if place.startswith(_FILE):
        return ArtifactStore(DirectoryObjects(_path_of(place)))
    if is_url(place):
        return ArtifactStore(UrlObjects(place))
    return ArtifactStore(DirectoryObjects(Path(place) / FLEET_FOLDER))


def _path_of(url: str) -> Path:
    """Return the directory of a URL ``file:///PATH``: its files appear as a whole."""
    path = Path(url.removeprefix(_FILE))
    if not path.is_absolute():
        msg = f"the store {url!r} has no absolute path"
        raise UsageError(msg, hint="Give file:///PATH, or the directory itself.")
    return path
