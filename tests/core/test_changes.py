"""A change of an export: made or not, whatever moment its process is killed at."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from lora_export.core import changes
from lora_export.core.changes import replace_files
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import exclusive_lock, staging_folder, write_synced
from lora_export.core.journal import WAITING, is_committed, stage_change
from lora_export.core.manifest import edit_manifest, read_manifest, stored_manifest, write_manifest
from tests.cli.running import snapshot
from tests.core.test_manifest import manifest

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = b"old", b"new"
FILE = "reports/x.json"


class Killed(BaseException):
    """A process that is gone: nothing of it is run any more."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    return {key: value for key, value in snapshot(folder).items() if key != "lora_export.json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of two reports, both old."""
    write_manifest(tmp_path, manifest().model_copy(update={"files": {}}))
    with edit_manifest(tmp_path) as before:
        replace_files(tmp_path, before, before, {FILE: OLD, "reports/y.json": OLD})
    return tmp_path


def half_done(folder: Path, *, made: bool) -> None:
    """Replace one report and remove the other, up to the manifest: before it or after it."""
    with edit_manifest(folder) as before:
        with staging_folder(folder, "test") as staging:
            (staging / "reports").mkdir()
            write_synced(staging / FILE, NEW)
            stage_change(folder, staging, ["reports/y.json"])
        if made:
            after = before.model_copy(update={"files": {FILE: sha256(NEW)}})
            write_manifest(folder, after)


def test_files_and_manifest_change_together(folder):
    assert files_of(folder) == {FILE: OLD, "reports/y.json": OLD}
    with edit_manifest(folder) as before:
        after = before.model_copy(update={"files": {}})
        updated = replace_files(folder, before, after, {FILE: NEW})
    assert files_of(folder) == {FILE: NEW}
    assert read_manifest(folder) == updated
    assert updated.files == {FILE: sha256(NEW)}
    assert not (folder / WAITING).exists()


def test_a_change_that_was_made_is_finished_by_who_reads_next(folder):
    half_done(folder, made=True)
    assert is_committed(folder, stored_manifest(folder).files)
    assert files_of(folder)[FILE] == OLD
    assert read_manifest(folder).files == {FILE: sha256(NEW)}
    assert files_of(folder) == {FILE: NEW}
    assert not (folder / WAITING).exists()


def test_a_change_that_was_not_made_is_left_by_readers_and_removed_by_the_next_change(folder):
    half_done(folder, made=False)
    assert read_manifest(folder).files == {FILE: sha256(OLD), "reports/y.json": sha256(OLD)}
    assert (folder / WAITING).is_dir()
    with edit_manifest(folder):
        assert files_of(folder) == {FILE: OLD, "reports/y.json": OLD}
        assert not (folder / WAITING).exists()


def test_what_was_to_be_removed_stays_where_the_manifest_names_it(folder):
    half_done(folder, made=True)
    both = {FILE: sha256(NEW), "reports/y.json": sha256(OLD)}
    write_manifest(folder, stored_manifest(folder).model_copy(update={"files": both}))
    assert read_manifest(folder).files == both
    assert files_of(folder) == {FILE: NEW, "reports/y.json": OLD}


def test_a_manifest_that_cannot_be_written_changes_nothing(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise Killed

    before = files_of(folder)
    monkeypatch.setattr(changes, "write_manifest", refuse)
    with edit_manifest(folder) as now, pytest.raises(Killed):
        replace_files(folder, now, now, {FILE: NEW})
    assert files_of(folder) == before
    assert not (folder / WAITING).exists()


def test_a_reader_waits_for_the_change_that_is_under_way(folder):
    """It takes the directory's lock, which the process that makes the change holds."""
    import threading

    half_done(folder, made=True)
    found: list[dict[str, str]] = []
    reader = threading.Thread(target=lambda: found.append(read_manifest(folder).files))
    with exclusive_lock(folder / ".lora_export.lock"):
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        assert files_of(folder)[FILE] == OLD
    reader.join(10)
    assert found == [{FILE: sha256(NEW)}]


@pytest.mark.parametrize("gone", ['["../secret"]', "{}", "[1]", "x"])
def test_a_folder_that_waits_and_is_hostile_leads_nowhere(folder, gone):
    secret = folder.parent / "secret"
    secret.write_bytes(b"kept")
    half_done(folder, made=True)
    (folder / WAITING / ".gone.json").write_text(gone)
    with pytest.raises(ExportDirectoryError):
        read_manifest(folder)
    assert secret.read_bytes() == b"kept"


def test_a_link_in_place_of_the_folder_that_waits_is_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "lora_export.json").write_bytes(NEW)
    (folder / WAITING).symlink_to(elsewhere)
    with pytest.raises(ExportDirectoryError, match="leads outside"), edit_manifest(folder):
        pass
    assert list(elsewhere.iterdir())
