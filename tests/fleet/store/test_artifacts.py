"""Artifacts in a directory and behind a URL: whole, compared with their hashes, or not there."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from lora_export.core.errors import StorageError, UsageError
from lora_export.fleet.store.artifacts import Artifact, ArtifactStore
from lora_export.fleet.store.directory import DirectoryObjects
from lora_export.fleet.store.open_store import open_store
from lora_export.fleet.store.url import UrlObjects

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from lora_export.fleet.store.objects import Objects

KEY, OTHER = "a" * 64, "b" * 64
CONTENTS = {"x/one.bin": b"one" * 1000, "two.json": b"{}", "x/three.bin": b"one" * 1000}


@pytest.fixture(params=["directory", "url"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Return storage in a directory, and behind a URL of fsspec's own memory."""
    if request.param == "directory":
        return DirectoryObjects(tmp_path / "store")
    return UrlObjects(f"memory://{tmp_path.name}/prefix")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of files."""
    for name, data in CONTENTS.items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(data)
    return tmp_path / "made"


def stored(objects: Objects, folder: Path, key: str = KEY) -> Artifact:
    """Store all files as an artifact."""
    about = {"verdict": "pass"}
    return ArtifactStore(objects).put(key, folder, CONTENTS, kind="adapter", name="n", about=about)


def blob_of(data: bytes) -> str:
    """Return the name of the object that holds these bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    return f"blobs/{sha256[:2]}/{sha256}"


def test_an_artifact_comes_back_as_it_was_stored(
    objects: Objects, folder: Path, tmp_path: Path
) -> None:
    store = ArtifactStore(objects)
    assert store.keys() == []
    assert store.read(KEY) is None
    made = stored(objects, folder)
    assert made.bytes == sum(map(len, CONTENTS.values()))
    assert store.keys() == [KEY]
    assert store.read(KEY) == made
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "two.json").write_text("earlier")
    found = store.get(KEY, tmp_path / "back")
    assert found.about == {"verdict": "pass"}
    files = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert {
        path.relative_to(tmp_path / "back").as_posix(): path.read_bytes() for path in files
    } == (CONTENTS)


def test_equal_contents_are_stored_once_and_swept_with_their_last_artifact(
    objects: Objects, folder: Path
) -> None:
    store = ArtifactStore(objects)
    stored(objects, folder)
    stored(objects, folder, OTHER)
    assert len(objects.sizes("blobs")) == 2
    store.delete(KEY)
    store.delete(KEY)  # it is gone already
    assert store.keys() == [OTHER]
    assert (store.unreferenced(), store.sweep()) == ({}, 0)
    store.delete(OTHER)
    assert store.sweep() == len(CONTENTS["two.json"]) + len(CONTENTS["x/one.bin"])
    assert objects.sizes("blobs") == {}


@pytest.mark.parametrize("damage", ["changed", "short", "missing"])
def test_a_damaged_artifact_is_refused_by_name_and_not_there_any_more(
    objects: Objects, folder: Path, tmp_path: Path, damage: str
) -> None:
    store = ArtifactStore(objects)
    made = stored(objects, folder)
    name = blob_of(CONTENTS["x/one.bin"])
    objects.remove([name])
    if damage != "missing":
        objects.write(name, b"two" * 1000 if damage == "changed" else b"one")
    seen = [(each.key, said) for each, said in store.damaged([made])]
    assert [key for key, _ in seen] == ([] if damage == "changed" else [KEY])
    with pytest.raises(StorageError, match=r"'x/one\.bin' of 'n'|'x/three\.bin' of 'n'") as error:
        store.get(KEY, tmp_path / "back")
    assert error.value.exit_code == 3
    assert store.keys() == []
    stored(objects, folder)
    store.get(KEY, tmp_path / "back")


class Cheating:
    """Storage that keeps a part of what it is given, below names that start with a text."""

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects, self._prefix = objects, prefix

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)

    def upload(self, source: Path, name: str) -> None:
        """Store the first half of a file."""
        self.write(name, source.read_bytes())

    def write(self, name: str, data: bytes) -> None:
        """Store the first half."""
        self._objects.write(name, data[: len(data) // 2] if name.startswith(self._prefix) else data)


@pytest.mark.parametrize("prefix", ["blobs", "artifacts"])
def test_storage_that_keeps_half_is_found_out_and_nothing_is_visible(
    objects: Objects, folder: Path, prefix: str
) -> None:
    with pytest.raises(StorageError, match="in place of"):
        stored(Cheating(objects, prefix), folder)  # type: ignore[arg-type]
    assert ArtifactStore(objects).keys() == []
    stored(objects, folder)  # what was cut short is written again
    assert list(ArtifactStore(objects).damaged([ArtifactStore(objects).read(KEY)])) == []  # type: ignore[list-item]


def test_an_upload_that_is_stopped_leaves_no_artifact(objects: Objects, folder: Path) -> None:
    class Stopping(Cheating):
        def write(self, name: str, data: bytes) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(Stopping(objects, ""), folder)  # type: ignore[arg-type]
    assert ArtifactStore(objects).keys() == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b'{"format_version": 9}', b'{"key": "x"}']
)
def test_a_record_that_cannot_be_read_is_no_artifact(objects: Objects, raw: bytes) -> None:
    objects.write(f"artifacts/{KEY}.json", raw)
    assert ArtifactStore(objects).read(KEY) is None


def test_a_record_whose_paths_lead_out_is_no_artifact(objects: Objects, folder: Path) -> None:
    made = stored(objects, folder).model_dump()
    made["files"] = {"../out": made["files"]["two.json"]}
    objects.write(f"artifacts/{KEY}.json", json.dumps(made).encode())
    assert ArtifactStore(objects).read(KEY) is None


def test_a_directory_that_refuses_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store"):
        stored(DirectoryObjects(tmp_path / "store"), folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_rights_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="ermission"):
        stored(DirectoryObjects(tmp_path / "store"), folder)


def test_a_fleet_names_a_directory_or_a_url(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).place == str(tmp_path / ".fleet")
    assert open_store("memory://bucket/prefix/").place == "memory://bucket/prefix"
    assert open_store(tmp_path.as_uri()).place == str(tmp_path)
    with pytest.raises(UsageError, match="no absolute path"):
        open_store("file://here/store")
    with pytest.raises(UsageError, match="nothing"):
        open_store("nothing://bucket")


def test_what_a_driver_raises_is_one_error_with_the_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DriverError(Exception):
        """An error of a class that nobody knows."""

    def refuse(*_: object, **__: object) -> Collection[str]:
        raise DriverError("403 Forbidden")

    objects = UrlObjects(f"memory://{tmp_path.name}")
    monkeypatch.setattr(objects._files, "put_file", refuse)
    with pytest.raises(StorageError, match=r"refuses to write 'memory://.*403 Forbidden"):
        stored(objects, folder)
    assert objects.sizes("artifacts") == {}
