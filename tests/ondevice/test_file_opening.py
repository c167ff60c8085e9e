"""Only regular files of bounded size are opened; everything else is named at once."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from lora_export.ondevice.file_opening import (
    open_descriptor,
    open_file,
    open_lock,
    read_file,
    real_path,
    require_file,
)

LIMIT = 1000


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _make(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nothing")


@pytest.mark.parametrize("opens", [require_file, open_descriptor, open_file, open_lock])
@pytest.mark.parametrize(
    ("kind", "number", "words"),
    [
        ("folder", errno.EISDIR, "folder|directory"),
        ("pipe", errno.EINVAL, "named pipe"),
        ("socket", None, "socket|No such device"),
        ("device", None, "device|symbolic link"),
        ("loop", errno.ELOOP, "levels of symbolic links|symbolic link"),
    ],
)
def test_what_is_no_regular_file_is_named_at_once(opens, kind, number, words, tmp_path):
    _make(kind, tmp_path / "x")
    with pytest.raises(OSError, match=words) as caught:
        opens(tmp_path / "x")
    assert number is None or caught.value.errno == number


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "blob").write_bytes(b"data")
    (tmp_path / "link").symlink_to("blob")
    assert read_file(tmp_path / "link", LIMIT) == b"data"


def test_a_file_at_the_limit_is_read_and_one_byte_more_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a" * LIMIT)
    assert len(read_file(path, LIMIT)) == LIMIT
    path.write_bytes(b"a" * (LIMIT + 1))
    with pytest.raises(OSError, match="larger than 1000 bytes") as caught:
        read_file(path, LIMIT)
    assert caught.value.errno == errno.EFBIG


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"a" * 10)
    status = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        found = status(descriptor)
        with path.open("ab") as stream:
            stream.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(OSError, match="grew while it was read"):
        read_file(path, LIMIT)


def test_a_file_exchanged_for_a_pipe_between_two_looks_does_not_hang(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"a")
    regular = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda _self, **_: regular)
    done: list[object] = []

    def attempt() -> None:
        try:
            read_file(path, LIMIT)
        except OSError as error:
            done.append(error.strerror)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert done == ["it is a named pipe, not a file"]


def test_a_lock_is_made_where_there_is_none_but_not_through_a_link(tmp_path):
    os.close(open_lock(tmp_path / "lock"))
    assert (tmp_path / "lock").is_file()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="it is a symbolic link, not a lock file"):
        open_lock(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_the_real_path_of_a_loop_is_a_path(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert real_path(tmp_path / "loop" / "x").name == "x"


def test_no_descriptor_is_left_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x").write_bytes(b"a")
    before = _open_descriptors()
    for _ in range(3):
        read_file(tmp_path / "x", LIMIT)
        for opens in (open_file, open_lock):
            with pytest.raises(OSError, match="pipe"):
                opens(tmp_path / "pipe")
    assert _open_descriptors() == before
