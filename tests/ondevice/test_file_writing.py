"""Written files are complete or absent, follow no link, and fail in one way."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lora_export.core.errors import ExportDirectoryError, StorageError
from lora_export.ondevice.device_files import atomic_write_bytes, exclusive_lock, staging_folder
from lora_export.ondevice.file_writing import (
    is_vacant,
    open_output,
    publish_file,
    publish_folder,
    storage_errors,
    write_synced,
)

KINDS = ["link", "dangling", "loop", "folder", "pipe", "socket", "device"]


def make(kind: str, path: Path) -> None:
    """Put something at `path` that is not a regular file; ``../victim`` is what a link leads to."""
    victim = path.parent / "victim"
    if kind in {"link", "device"}:
        victim.write_bytes(b"kept")
    if kind == "device" and os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    elif kind in {"link", "device"}:
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(path.parent / "nothing")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


def what_is_there(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        each.name: (status.st_ino, status.st_mode, each.read_bytes() if each.is_file() else b"")
        for each in folder.iterdir()
        for status in [each.lstat()]
    }


def hold(path: Path) -> None:
    with exclusive_lock(path):
        pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_synced(path, b"new"),
        lambda path: atomic_write_bytes(path, b"new"),
        hold,
    ],
    ids=["synced", "atomic", "lock"],
)
def test_nothing_is_written_to_or_in_place_of_what_is_no_file(write, kind, tmp_path):
    make(kind, tmp_path / "x")
    before = what_is_there(tmp_path)
    with pytest.raises(StorageError, match="cannot write") as caught:
        write(tmp_path / "x")
    assert str(tmp_path / "x") in caught.value.message
    assert caught.value.hint is not None
    assert what_is_there(tmp_path) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_appended_to_what_is_no_file(kind, tmp_path):
    make(kind, tmp_path / "x")
    before = what_is_there(tmp_path)
    with pytest.raises(OSError, match=r"not a file|symbolic link"):
        open_output(tmp_path / "x", append=True)
    assert what_is_there(tmp_path) == before


def test_a_file_is_emptied_or_appended_to(tmp_path):
    path = tmp_path / "x"
    for data, append, expected in [(b"a", True, b"a"), (b"b", True, b"ab"), (b"c", False, b"c")]:
        with open_output(path, append=append) as stream:
            stream.write(data)
        assert path.read_bytes() == expected


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "can only be read"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "disk is faulty"),
        (errno.ENOENT, "removed meanwhile"),
        (errno.EFBIG, "ulimit"),
        (errno.ELOOP, "another output"),
        (errno.EISDIR, "another output"),
        (errno.ENOTDIR, "another output"),
        (errno.ENOTEMPTY, "another output"),
    ],
)
def test_the_hint_is_about_the_reason(number, hint):
    with pytest.raises(StorageError, match=r"^cannot write out: ") as caught, storage_errors("out"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 3
    assert hint in (caught.value.hint or "")
    assert "left behind" not in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("umask", "folders", "files"), [(0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_the_umask_holds_for_folders_and_files(umask, folders, files, tmp_path):
    before = os.umask(umask)
    try:
        with staging_folder(tmp_path / "deep", "x") as staging:
            (staging / "below").mkdir()
            write_synced(staging / "below" / "file", b"x")
            publish_folder(staging, tmp_path / "deep" / "out")
        atomic_write_bytes(tmp_path / "single", b"x")
        with exclusive_lock(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)

    def mode(path: str) -> int:
        return stat.S_IMODE((tmp_path / path).stat().st_mode)

    assert [mode(each) for each in ("deep", "deep/out", "deep/out/below")] == [folders] * 3
    assert [mode(each) for each in ("deep/out/below/file", "single", "lock")] == [files] * 3


# -------------------------------------------------------------------------------- publishing


def test_a_file_gets_its_name_where_there_is_nothing(tmp_path):
    with staging_folder(tmp_path) as staging:
        write_synced(staging / "x", b"ours")
        publish_file(staging / "x", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"ours"
    assert (tmp_path / "out").stat().st_nlink == 1


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("kind", ["file", "link", "dangling", "pipe"])
def test_a_file_that_another_process_wrote_meanwhile_stays(kind, links, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    with staging_folder(tmp_path) as staging:
        write_synced(staging / "x", b"ours")
        if kind == "file":
            (tmp_path / "out").write_bytes(b"theirs")
        else:
            make(kind, tmp_path / "out")
        with pytest.raises(ExportDirectoryError, match="another process has written") as caught:
            publish_file(staging / "x", tmp_path / "out")
    assert caught.value.exit_code == 3
    assert kind != "file" or (tmp_path / "out").read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["link", "dangling", "loop", "pipe", "socket"])
def test_a_folder_is_not_put_in_place_of_what_is_no_folder(kind, tmp_path):
    make(kind, tmp_path / "out")
    assert not is_vacant(tmp_path / "out")
    with (
        staging_folder(tmp_path) as staging,
        pytest.raises(ExportDirectoryError, match="another process has written"),
    ):
        publish_folder(staging, tmp_path / "out")
    assert os.path.lexists(tmp_path / "out")


def test_a_link_to_an_empty_folder_is_not_vacant(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to("empty")
    assert not is_vacant(tmp_path / "out")


@pytest.mark.parametrize("name", ["x" * 256, "file/out", "loop/out"])
def test_a_path_that_cannot_be_is_a_storage_error(name, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="cannot write"):
        is_vacant(tmp_path / name)
    with pytest.raises(StorageError, match="cannot write"):
        atomic_write_bytes(tmp_path / name / "below", b"")


def test_a_folder_with_the_longest_name_can_be_staged(tmp_path):
    output = tmp_path / ("x" * 255)
    with staging_folder(output.parent, output.name) as staging:
        publish_folder(staging, output)
    assert output.is_dir()


def test_a_parent_that_vanishes_is_a_storage_error(tmp_path):
    """As where another process removes the folder of the output during the run."""
    output = tmp_path / "parent" / "out"
    with staging_folder(output.parent) as staging:
        staging.rmdir()
        output.parent.rmdir()
        with pytest.raises(StorageError, match="No such file") as caught:
            write_synced(staging / "x", b"")
        assert "removed meanwhile" in (caught.value.hint or "")
        with pytest.raises(StorageError, match="No such file"):
            publish_folder(staging, output)


RACER = """
import sys, time
from pathlib import Path
from lora_export.core.errors import ExportDirectoryError
from lora_export.ondevice.device_files import publish_folder, staging_folder, write_synced
output, until = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, until - time.time()))
for number in range(40):
    out = output / str(number) / "deep" / "out"
    try:
        with staging_folder(out.parent, "x") as staging:
            write_synced(staging / "x", sys.argv[3].encode())
            publish_folder(staging, out)
    except ExportDirectoryError as error:
        assert "another process has written" in str(error)
"""


def test_of_several_processes_one_writes_and_the_others_say_so(tmp_path):
    import time

    until = str(time.time() + 1.0)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / "outs"), until, str(number)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    failed = [
        err for each in running for err in [each.communicate(timeout=60)[1]] if each.returncode
    ]
    assert failed == []
    for number in range(40):
        folder = tmp_path / "outs" / str(number) / "deep"
        assert [each.name for each in folder.iterdir()] == ["out"]
        assert (folder / "out" / "x").read_bytes() in {b"0", b"1", b"2", b"3"}
