"""Artifacts: sets of files under a key, whole or not there.

    blobs/SHA256           what files hold, each content once
    artifacts/KEY.json     {format_version, key, kind, name, files: {path: {sha256, bytes}}, about}

Blobs are written first and the record last: an artifact without a record is not there. The name of
a blob is its hash, so that two workers that store the same thing do not disturb each other, and
what a reader gets is compared with the name. A key is the hash of all that a result depends on
(`lora_export.fleet.fleet_plan`), or of the content of an input (`lora_export.fleet.content`).
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lora_export.core.errors import InputError, StorageError
from lora_export.core.files import (
    is_relative_inside,
    move_into_place,
    resolve_inside,
    sha256_of_file,
    staging_folder,
    storage_errors,
)
from lora_export.core.model_json import model_json
from lora_export.ondevice.file_opening import reason_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from typing_extensions import Self

    from lora_export.fleet.store.objects import Objects

__all__ = ["Artifact", "ArtifactStore", "StoredFile"]

_FORMAT: Final = 1
_RECORDS: Final = "artifacts"
_BLOBS: Final = "blobs"
_LIMIT_BYTES: Final = 1 << 26
_AGAIN: Final = "It was removed: run the fleet again, which makes it again."
_KEY_LENGTH: Final = 64
_READERS: Final = 16

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class StoredFile(_Record):
    """A file of an artifact.

    Attributes:
        sha256: The hash of what it holds, which is the name of its blob.
        bytes: How many these are.
    """

    sha256: _Sha256
    bytes: int = Field(ge=0)


class Artifact(_Record):
    """The record of an artifact.

    Attributes:
        format_version: 1.
        key: Its key.
        kind: ``input``, or the kind of the row that made it.
        name: The id of that row, or the path of the input, for people.
        files: Its files, by their paths in the tree that it is part of.
        about: What else is known: the result of its row.
    """

    format_version: int = Field(default=_FORMAT, ge=1, le=_FORMAT)
    key: _Sha256
    kind: str
    name: str
    files: dict[str, StoredFile]
    about: dict[str, Any] = {}

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        outside = next((path for path in self.files if not is_relative_inside(path)), None)
        if outside is not None:
            msg = f"the path {outside!r} leads out of the artifact"
            raise ValueError(msg)
        return self

    @property
    def bytes(self) -> int:
        """The bytes of all of its files."""
        return sum(each.bytes for each in self.files.values())


class ArtifactStore:
    """Artifacts in storage. Every method raises `StorageError` where the storage refuses.

    Args:
        objects: The storage.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @property
    def place(self) -> str:
        """Its place, as users name it."""
        return self._objects.place

    def keys(self) -> list[str]:
        """Return the keys of all artifacts."""
        names = (Path(name) for name in self._objects.sizes(_RECORDS))
        return [each.stem for each in names if len(each.stem) == _KEY_LENGTH]

    def read(self, key: str) -> Artifact | None:
        """Return the record of an artifact; None where there is none that can be read."""
        raw = self._objects.read(_record(key), _LIMIT_BYTES)
        try:
            found = Artifact.model_validate_json(raw) if raw is not None else None
        except ValidationError:
            return None
        return found if found is not None and found.key == key else None

    def read_all(self, keys: Collection[str]) -> dict[str, Artifact]:
        """Return the records of artifacts by key, several read at a time; see `read`."""
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(keys, pool.map(self.read, keys), strict=True)
            return {key: each for key, each in found if each is not None}

    def put(
        self, key: str, folder: Path, files: Collection[str], *,
        kind: str, name: str, about: Mapping[str, Any] | None = None,
    ) -> Artifact:  # fmt: skip
        """Store files as an artifact; it is there when this returns, and not before.

        Args:
            key: Its key.
            folder: The folder that `files` are relative to.
            files: Its files.
            kind: See `Artifact`.
            name: See `Artifact`.
            about: See `Artifact`.

        Raises:
            InputError: A file cannot be read.
            StorageError: The storage refuses, or holds other bytes than it was given.
        """
        stored = {path: self._put_blob(folder, path) for path in sorted(files)}
        made = Artifact(key=key, kind=kind, name=name, files=stored, about=dict(about or {}))
        data = model_json(made)
        self._objects.write(_record(key), data)
        if (found := self._objects.size(_record(key))) != len(data):
            with contextlib.suppress(StorageError):
                self._objects.remove([_record(key)])
            raise _cut_short(self.place, _record(key), len(data), found)
        return made

    def get(self, key: str, folder: Path) -> Artifact:
        """Copy an artifact's files into a folder, each compared with its hash.

        Files that are there are replaced. An artifact that turns out to be damaged is removed from
        the store.

        Raises:
            StorageError: There is no such artifact, it is damaged, or the storage refuses.
        """
        artifact = self.read(key)
        if artifact is None:
            msg = f"the store {self.place!r} has no artifact {key}"
            raise StorageError(msg, hint="Run the fleet again, which makes it.")
        with staging_folder(folder, "artifact") as staging:
            for path, file in artifact.files.items():
                self._get_blob(artifact, path, file, staging / "blob")
                target = resolve_inside(folder, path)
                with storage_errors(str(target)):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    move_into_place(staging / "blob", target)
        return artifact

    def put_document(self, source: Path, name: str) -> None:
        """Store a file beside the artifacts, such as the report of a run."""
        self._objects.upload(source, name)

    def get_document(self, name: str, limit_bytes: int) -> bytes | None:
        """Return a file that is beside the artifacts; None where there is none."""
        return self._objects.read(name, limit_bytes)

    def delete(self, key: str) -> None:
        """Remove an artifact; what its files hold goes with `sweep`."""
        self._objects.remove([_record(key)])

    def unreferenced(self, without: Collection[str] = ()) -> dict[str, int]:
        """Return the blobs that no artifact needs, by SHA-256, with their bytes.

        While a run is storing something, these may be blobs whose record is still to come.

        Args:
            without: Keys of artifacts that do not count.
        """
        artifacts = self.read_all(sorted({*self.keys()} - {*without})).values()
        used = {file.sha256 for each in artifacts for file in each.files.values()}
        return {
            sha256: size
            for name, size in self._objects.sizes(_BLOBS).items()
            if (sha256 := name.rpartition("/")[2]) not in used
        }

    def sweep(self) -> int:
        """Remove the blobs that no artifact needs; return their bytes. No run may be under way."""
        found = self.unreferenced()
        self._objects.remove([_blob(sha256) for sha256 in found])
        return sum(found.values())

    def damaged(self, artifacts: Collection[Artifact]) -> Iterator[tuple[Artifact, str]]:
        """Yield the artifacts whose blobs are missing or have another size, and what is wrong.

        Contents are compared with their hashes when they are read.
        """
        sizes = self._objects.sizes(_BLOBS) if artifacts else {}
        for artifact in artifacts:
            for path, file in artifact.files.items():
                found = sizes.get(_blob(file.sha256))
                if found != file.bytes:
                    yield artifact, f"{path!r} {_wrong(file.bytes, found)}"
                    break

    def _put_blob(self, folder: Path, path: str) -> StoredFile:
        source = resolve_inside(folder, path)
        try:
            sha256, size = sha256_of_file(source), source.stat().st_size
        except OSError as error:
            msg = f"cannot read {str(source)!r}: {reason_of(error)}"
            raise InputError(msg, hint="Check the path and its permissions.") from error
        name = _blob(sha256)
        if self._objects.size(name) != size:
            self._objects.upload(source, name)
            if (found := self._objects.size(name)) != size:
                raise _cut_short(self.place, name, size, found)
        return StoredFile(sha256=sha256, bytes=size)

    def _get_blob(self, artifact: Artifact, path: str, file: StoredFile, target: Path) -> None:
        name = _blob(file.sha256)
        there = self._objects.download(name, target)
        with storage_errors(str(target)):
            found = target.stat().st_size if there else None
            whole = found == file.bytes and sha256_of_file(target) == file.sha256
        if whole:
            return
        with contextlib.suppress(StorageError):
            self._objects.remove([_record(artifact.key), name])
        said = _wrong(file.bytes, found) if found != file.bytes else "has another content"
        msg = f"{path!r} of {artifact.name!r} in the store {self.place!r} {said}"
        raise StorageError(msg, hint=_AGAIN)


def _record(key: str) -> str:
    return f"{_RECORDS}/{key}.json"


def _blob(sha256: str) -> str:
    return f"{_BLOBS}/{sha256[:2]}/{sha256}"


def _wrong(expected: int, found: int | None) -> str:
    return "is missing" if found is None else f"has {found} bytes in place of {expected}"


def _cut_short(place: str, name: str, expected: int, found: int | None) -> StorageError:
    msg = f"the store {place!r} took {name!r}, which now {_wrong(expected, found)}"
    return StorageError(msg, hint="Check the store, then run again.")
