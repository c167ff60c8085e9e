"""A change of an export: made or not, whatever moment its process is killed at."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_export.core import changes
from lora_export.core.changes import replace_files
from lora_export.core.errors import ExportDirectoryError, StorageError
from lora_export.core.files import exclusive_lock, staging_folder, write_synced
from lora_export.core.journal import WAITING, is_committed, is_waiting, stage_change
from lora_export.core.manifest import edit_manifest, read_manifest, stored_manifest, write_manifest
from tests.cli.running import snapshot
from tests.core.test_manifest import manifest

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
            stage_change(folder, staging, {FILE: sha256(OLD), "reports/y.json": sha256(OLD)})
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


# ------------------------------------------------------------- a folder that somebody else made


@pytest.mark.parametrize("stated", ['{"../secret": "0"}', "[]", '{"x": 1}', "x", "{"])
def test_a_folder_that_waits_and_is_hostile_leads_nowhere(folder, stated):
    secret = folder.parent / "secret"
    secret.write_bytes(b"kept")
    half_done(folder, made=True)
    (folder / WAITING / ".replaced.json").write_text(stated)
    with pytest.raises(ExportDirectoryError):
        read_manifest(folder)
    assert secret.read_bytes() == b"kept"


@pytest.mark.parametrize("target", ["elsewhere", "folder/reports"])
def test_a_link_in_place_of_the_folder_that_waits_is_not_followed(target, folder, tmp_path):
    elsewhere = folder / "reports" if target != "elsewhere" else tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "lora_export.json").write_bytes(NEW)
    (folder / WAITING).symlink_to(elsewhere)
    assert read_manifest(folder).files  # a reader finds nothing that waits
    with pytest.raises(ExportDirectoryError, match="not a folder"), edit_manifest(folder):
        pass
    assert (elsewhere / "lora_export.json").read_bytes() == NEW
    assert (folder / WAITING).is_symlink()


def plant(folder: Path, files: dict[str, bytes], stated: object, journal: str) -> None:
    """Make a manifest and a folder that waits, as somebody who ships an export can."""
    named = {FILE: sha256(OLD), **{file: sha256(data) for file, data in files.items()}}
    write_manifest(folder, stored_manifest(folder).model_copy(update={"files": named}))
    for file, data in {**files, journal: json.dumps(stated).encode()}.items():
        path = folder / WAITING / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("journal", [".gone.json", ".replaced.json"])
@pytest.mark.parametrize("stated", [["notes.txt"], {"notes.txt": sha256(b"another text")}, {}])
def test_a_stranger_does_not_have_a_file_removed(folder, journal, stated):
    (folder / "notes.txt").write_bytes(b"mine")
    plant(folder, {"reports/new.json": NEW}, stated, journal)
    with contextlib.suppress(ExportDirectoryError):
        read_manifest(folder)
    with contextlib.suppress(ExportDirectoryError), edit_manifest(folder):
        pass
    assert (folder / "notes.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("stated", [["notes.txt"], {}, {"notes.txt": sha256(b"another text")}])
def test_a_stranger_does_not_have_a_file_replaced(folder, stated):
    (folder / "notes.txt").write_bytes(b"mine")
    journal = ".gone.json" if isinstance(stated, list) else ".replaced.json"
    plant(folder, {"notes.txt": NEW}, stated, journal)
    for _ in range(2):
        with pytest.raises(ExportDirectoryError, match=r"would replace 'notes\.txt'") as caught:
            read_manifest(folder)
        assert caught.value.exit_code == 3
        assert WAITING in (caught.value.hint or "")
    assert (folder / "notes.txt").read_bytes() == b"mine"
    shutil.rmtree(folder / WAITING)  # as the hint says
    assert read_manifest(folder)


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_what_waits_and_is_no_file_is_not_read(folder, kind, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_bytes(NEW)
    plant(folder, {"reports/new.json": NEW}, {}, ".replaced.json")
    waiting = folder / WAITING / "reports" / "new.json"
    waiting.unlink()
    if kind == "pipe":
        os.mkfifo(waiting)
    else:
        waiting.symlink_to(secret if kind == "link" else "/dev/zero")
    assert read_manifest(folder).files["reports/new.json"] == sha256(NEW)
    assert not (folder / "reports" / "new.json").exists()
    with edit_manifest(folder):
        assert not os.path.lexists(folder / WAITING)
    assert secret.read_bytes() == NEW


def test_links_below_the_folder_that_waits_are_not_entered(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "new.json").write_bytes(NEW)
    plant(folder, {"reports/new.json": NEW}, {}, ".replaced.json")
    shutil.rmtree(folder / WAITING / "reports")
    (folder / WAITING / "reports").symlink_to(elsewhere)
    with edit_manifest(folder):
        pass
    assert (elsewhere / "new.json").read_bytes() == NEW


# ----------------------------------------------------------- a folder that an older version left


def older(folder: Path) -> None:
    """Write what a version without hashes left: the names of the files to remove."""
    (folder / WAITING / ".replaced.json").unlink()
    (folder / WAITING / ".gone.json").write_text('["reports/y.json"]')


def test_new_files_of_an_older_version_move_and_the_old_stay(folder):
    half_done(folder, made=True)
    older(folder)
    (folder / FILE).unlink()  # it had moved the old one away, or there was none
    assert read_manifest(folder).files == {FILE: sha256(NEW)}
    assert files_of(folder) == {FILE: NEW, "reports/y.json": OLD}


def test_a_file_that_an_older_version_would_replace_is_named(folder):
    half_done(folder, made=True)
    older(folder)
    with pytest.raises(ExportDirectoryError, match=r"replace 'reports/x\.json'") as caught:
        read_manifest(folder)
    assert "older version" in (caught.value.hint or "")
    (folder / FILE).rename(folder / "aside")  # as the hint says
    assert read_manifest(folder).files == {FILE: sha256(NEW)}


# ------------------------------------------------------------------------- a disk that refuses


def refuse(name: str, number: int, monkeypatch: pytest.MonkeyPatch, *, where: str = "") -> None:
    """Have a method of paths fail for those that contain `where`."""
    real = getattr(Path, name)

    def refused(path: Path, *arguments: object, **settings: object) -> object:
        if where in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr(Path, name, refused)


def test_a_folder_that_cannot_be_made_is_found_before_the_change_is_made(folder, monkeypatch):
    before = files_of(folder)
    with edit_manifest(folder) as now:
        refuse("mkdir", errno.ENOSPC, monkeypatch, where=str(folder / "golden"))
        with pytest.raises(StorageError, match="No space left"):
            replace_files(folder, now, now, {"golden/deep/new": NEW})
        monkeypatch.undo()
    assert files_of(folder) == before
    assert stored_manifest(folder) == now
    assert not (folder / "golden").exists()


def test_a_file_that_cannot_be_removed_after_the_change_is_left_to_the_next(folder, monkeypatch):
    with edit_manifest(folder) as now:
        after = now.model_copy(update={"files": {}})
        refuse("unlink", errno.EIO, monkeypatch, where="y.json")
        replace_files(folder, now, after, {FILE: NEW})
        monkeypatch.undo()
    assert is_waiting(folder)
    assert read_manifest(folder).files == {FILE: sha256(NEW)}
    with edit_manifest(folder):
        assert files_of(folder) == {FILE: NEW}
    assert not is_waiting(folder)


def test_a_move_that_fails_after_the_change_is_made_says_so(folder, monkeypatch):
    with edit_manifest(folder) as now:
        refuse("replace", errno.EIO, monkeypatch, where=WAITING)
        with pytest.raises(StorageError) as caught:
            replace_files(folder, now, now, {FILE: NEW})
        monkeypatch.undo()
    assert "change is recorded" in (caught.value.hint or "")
    assert read_manifest(folder).files[FILE] == sha256(NEW)
    assert files_of(folder)[FILE] == NEW


def test_a_manifest_that_is_written_and_cannot_be_synced_is_a_change(folder, monkeypatch):
    def written_and(*arguments: Any) -> None:
        write_manifest(*arguments)
        raise StorageError("cannot write x: Input/output error")

    monkeypatch.setattr(changes, "write_manifest", written_and)
    with edit_manifest(folder) as now:
        replace_files(folder, now, now, {FILE: NEW})
    assert files_of(folder)[FILE] == NEW
    assert read_manifest(folder).files[FILE] == sha256(NEW)
    assert not is_waiting(folder)


def test_a_reader_who_may_not_finish_a_change_says_so(folder, monkeypatch):
    half_done(folder, made=True)
    (folder / ".lora_export.lock").unlink()
    (folder / ".lora_export.lock").symlink_to("nothing")  # as a lock that cannot be made
    before = files_of(folder)
    with pytest.raises(StorageError, match="was cut short is not finished") as caught:
        read_manifest(folder)
    assert caught.value.exit_code == 3
    assert files_of(folder) == before
