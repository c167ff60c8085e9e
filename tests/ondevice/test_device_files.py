"""Complete or absent: atomic writes, staging folders, locks, paths that stay inside."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_export.core.errors import ExportDirectoryError, StorageError
from lora_export.ondevice import device_files as files
from lora_export.ondevice.device_files import (
    atomic_write_bytes,
    exclusive_lock,
    is_vacant,
    publish_folder,
    resolve_inside,
    sha256_of_file,
    staging_folder,
    storage_errors,
    write_synced,
)

DATA = b"some bytes" * 1000


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("write", [atomic_write_bytes, write_synced])
def test_a_write_returns_the_hash_of_what_is_on_disk(write, tmp_path):
    digest = write(tmp_path / "x", DATA)
    assert (tmp_path / "x").read_bytes() == DATA
    assert digest == hashlib.sha256(DATA).hexdigest() == sha256_of_file(tmp_path / "x")
    assert names(tmp_path) == {"x"}


def test_an_atomic_write_replaces_and_is_readable_by_others(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    atomic_write_bytes(tmp_path / "x", DATA)
    assert (tmp_path / "x").read_bytes() == DATA
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_a_failed_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        atomic_write_bytes(tmp_path / "x", DATA)
    assert caught.value.exit_code == 3
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == {"x"}


def test_an_interrupted_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "x", DATA)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == {"x"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT])
def test_what_the_disk_refuses_is_a_storage_error(number):
    with (
        pytest.raises(StorageError, match="cannot write out") as caught,
        storage_errors("out"),
    ):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value.__cause__, OSError)
    assert os.strerror(number) in caught.value.message


def test_an_error_that_is_no_system_calls_passes_untouched():
    with pytest.raises(ValueError, match="something else"), storage_errors("out"):
        raise ValueError("something else")


def test_the_hash_of_a_large_file_covers_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_READ_BLOCK_BYTES", 7)
    (tmp_path / "x").write_bytes(DATA[:-3])
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(DATA[:-3]).hexdigest()


# --------------------------------------------------------------------------- staging folders


def test_a_staging_folder_is_empty_private_and_removed(tmp_path):
    with staging_folder(tmp_path / "deep" / "out", "add") as folder:
        assert folder.is_relative_to(tmp_path / "deep" / "out")
        assert list(folder.iterdir()) == []
        (folder / "half").write_bytes(b"written")
    assert names(tmp_path) == set()  # nor the parents that were made for it


def test_a_staging_folder_is_removed_on_failure(tmp_path):
    def interrupted() -> None:
        with staging_folder(tmp_path) as folder:
            (folder / "half").write_bytes(b"written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == set()


def test_what_was_renamed_away_stays(tmp_path):
    with staging_folder(tmp_path) as folder:
        (folder / "x").write_bytes(b"done")
        folder.rename(tmp_path / "out")
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "x").read_bytes() == b"done"


HOLDER = """
import sys, time
from pathlib import Path
from lora_export.ondevice.device_files import staging_folder
with staging_folder(Path(sys.argv[1]), "add") as folder:
    (folder / "half").write_bytes(b"written")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    """Start a Python process whose first line of output is waited for; killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: object) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield run
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, start):
    process, line = start(HOLDER, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (Path(line) / "half").is_file()
    with staging_folder(tmp_path, "add") as folder:
        assert not Path(line).exists()
        assert names(tmp_path) == {folder.name}
    assert names(tmp_path) == set()


def test_what_a_living_process_works_in_is_left_alone(tmp_path, start):
    _, line = start(HOLDER, tmp_path)
    with staging_folder(tmp_path, "add") as folder:
        assert folder != Path(line)
        assert (Path(line) / "half").read_bytes() == b"written"
    assert (Path(line) / "half").is_file()


def test_a_folder_that_is_swept_away_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    real = Path.mkdir
    made: list[Path] = []

    def swept_at_first(folder: Path, *arguments: object, **settings: object) -> None:
        real(folder, *arguments, **settings)
        if folder.parent != tmp_path:
            return
        made.append(folder)
        if len(made) == 1:
            files.remove_abandoned(tmp_path)  # another process looks before it is locked
            assert not folder.exists()

    monkeypatch.setattr(Path, "mkdir", swept_at_first)
    with staging_folder(tmp_path) as folder:
        assert folder == made[1]
        assert folder.is_dir()


def test_nested_staging_in_one_process_does_not_remove_the_outer(tmp_path):
    with staging_folder(tmp_path) as outer:
        (outer / "x").write_bytes(b"x")
        with staging_folder(tmp_path):
            pass
        assert (outer / "x").is_file()


def test_the_temporary_file_of_a_killed_atomic_write_is_removed_by_the_next(tmp_path, start):
    code = """
import os, sys, time
from pathlib import Path
from lora_export.ondevice import device_files as files
def hang(descriptor):
    print("writing", flush=True)
    time.sleep(60)
files.os.fsync = hang
files.atomic_write_bytes(Path(sys.argv[1]) / "x", b"data")
"""
    process, line = start(code, tmp_path)
    assert line == "writing"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x").exists()
    with staging_folder(tmp_path):
        pass
    assert names(tmp_path) == set()


def test_an_unrelated_folder_of_a_similar_name_is_not_removed(tmp_path):
    for name in (".lora-export-cache-v2", "out", ".lora-exports"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_bytes(b"x")
    with staging_folder(tmp_path):
        pass
    assert names(tmp_path) == {".lora-export-cache-v2", "out", ".lora-exports"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_cannot_be_written_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"), staging_folder(tmp_path):
            pass
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------- locks

LOCKER = """
import sys, time
from pathlib import Path
from lora_export.ondevice.device_files import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[3]).write_text("released")
"""


def test_a_lock_makes_another_process_wait(tmp_path, start):
    _, line = start(LOCKER, tmp_path / "lock", 1.0, tmp_path / "note")
    assert line == "held"
    assert not (tmp_path / "note").exists()
    with exclusive_lock(tmp_path / "lock"):
        assert (tmp_path / "note").read_text() == "released"


def test_a_lock_dies_with_its_process(tmp_path, start):
    process, line = start(LOCKER, tmp_path / "lock", 60, tmp_path / "note")
    assert line == "held"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = time.monotonic()
    with exclusive_lock(tmp_path / "lock"):
        assert time.monotonic() - before < 5


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="inside"), exclusive_lock(tmp_path / "lock"):
        raise ValueError("inside")
    with exclusive_lock(tmp_path / "lock"):
        pass


# -------------------------------------------------------------------------------- publishing


@pytest.mark.parametrize("there", ["nothing", "an empty folder"])
def test_a_finished_folder_gets_its_name(there, tmp_path):
    output = tmp_path / "out"
    if there != "nothing":
        output.mkdir()
    with staging_folder(tmp_path) as staging:
        write_synced(staging / "x", DATA)
        publish_folder(staging, output)
    assert names(tmp_path) == {"out"}
    assert (output / "x").read_bytes() == DATA


def test_what_another_process_wrote_meanwhile_stays(tmp_path):
    output = tmp_path / "out"
    with staging_folder(tmp_path) as staging:
        write_synced(staging / "x", b"ours")
        output.mkdir()
        write_synced(output / "x", b"theirs")
        with pytest.raises(ExportDirectoryError, match=r"has written .*out' meanwhile") as caught:
            publish_folder(staging, output, hint="Run again.")
    assert caught.value.hint == "Run again."
    assert names(tmp_path) == {"out"}
    assert (output / "x").read_bytes() == b"theirs"


def test_a_disk_that_refuses_a_finished_folder_is_a_storage_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with staging_folder(tmp_path) as staging:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            publish_folder(staging, tmp_path / "out")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("there", "vacant"), [(None, True), ("empty", True), ("full", False), ("file", False)]
)
def test_where_a_folder_may_be_put(there, vacant, tmp_path):
    output = tmp_path / "out"
    if there == "file":
        output.write_bytes(b"")
    elif there is not None:
        output.mkdir()
    if there == "full":
        (output / "x").write_bytes(b"")
    assert is_vacant(output) == vacant


# ------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("relative", ["a.onnx", "weights/base.safetensors", "./x", "a/./b", "..."])
def test_a_path_inside_is_taken(relative, tmp_path):
    assert resolve_inside(tmp_path, relative) == tmp_path / relative


@pytest.mark.parametrize(
    "relative",
    ["..", "../x", "a/../../x", "a/..", "/etc/passwd", "//etc/passwd", "x\0y", "weights/../../x"],
)
def test_a_path_that_leads_outside_is_refused(relative, tmp_path):
    with pytest.raises(ExportDirectoryError, match="leads outside") as caught:
        resolve_inside(tmp_path, relative)
    assert caught.value.exit_code == 3


def test_a_symbolic_link_that_leaves_is_refused(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(b"x")
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    for relative in ("link/secret", "link", "file", "dangling", "link/new"):
        with pytest.raises(ExportDirectoryError, match="leads outside"):
            resolve_inside(root, relative)


def test_a_symbolic_link_that_stays_is_taken(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert resolve_inside(tmp_path, "alias/x") == tmp_path / "alias" / "x"


def test_a_root_reached_by_a_symbolic_link_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert resolve_inside(tmp_path / "alias", "x") == tmp_path / "alias" / "x"


def test_a_sibling_that_shares_the_prefix_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root-other").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root-other")
    with pytest.raises(ExportDirectoryError):
        resolve_inside(tmp_path / "root", "link/x")
