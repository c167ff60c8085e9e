"""Disks that are read-only, full before and after a change is made, and folders that vanish."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.exports import manifest_of
from tests.cli.running import REPOSITORY, call, snapshot, stagings
from tests.end_to_end.bad_input.spoiling import TASK
from tests.helpers.builds import build
from tests.helpers.handmade import save_adapter, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.helpers.models import TinyModels

MODES = ["merged", pytest.param("swappable", marks=pytest.mark.slow),
         pytest.param("batched", marks=pytest.mark.slow)]  # fmt: skip


@pytest.fixture(scope="module")
def verified(tiny: TinyModels, tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """Return a function: mode → a verified export with the adapter ``first``, and a second one."""
    made: dict[str, tuple[Path, Path]] = {}

    def export(mode: str) -> tuple[Path, Path]:
        if mode not in made:
            base = tiny.base("bert", TASK)
            first, second = tiny.adapter(base, r=4, seed=1), tiny.adapter(base, r=2, seed=3)
            out = tmp_path_factory.mktemp(f"verified-{mode}") / "out"
            settings = {} if mode == "merged" else {"mode": mode}
            build(base, {"first": first}, out, task=TASK, verify={"enabled": True}, **settings)
            made[mode] = out, second
        return made[mode]

    return export


@pytest.fixture
def copied(verified, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a function: mode → a copy of the export, to be changed, and the second adapter."""

    def copy(mode: str) -> tuple[Path, Path]:
        export, second = verified(mode)
        shutil.copytree(export, tmp_path / "out")
        return tmp_path / "out", second

    return copy


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Have a folder be on a file system that can only be read."""
    mount = shutil.which("mount")
    bind = [mount or "", "--bind", str(folder), str(folder)]
    done = mount and subprocess.run(bind, capture_output=True, check=False).returncode == 0
    if not done:
        pytest.skip("a folder can be mounted read-only by root alone")
    try:
        again = [bind[0], "-o", "remount,ro,bind", str(folder)]
        if subprocess.run(again, capture_output=True, check=False).returncode != 0:
            pytest.skip("a folder can be mounted read-only by root alone")
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", ["add", "replace", "remove"])
def test_a_read_only_file_system_is_one_sentence(copied, verb, mode, capsys) -> None:
    out, second = copied(mode)
    (out / ".lora_export.lock").unlink(missing_ok=True)
    before = snapshot(out)
    arguments = {
        "add": ("add", out, "--adapter", f"second={second}"),
        "replace": ("add", out, "--adapter", f"first={second}", "--replace"),
        "remove": ("remove", out, "first"),
    }[verb]
    with read_only(out):
        result = call(capsys, *arguments)
    assert result.code == 3, result.err
    assert "Read-only file system" in result.message
    assert "can only be read" in result.message
    assert str(out) in result.message
    assert snapshot(out) == before


@pytest.mark.parametrize("verb", ["merge", "convert", "compress", "report", "bundle"])
def test_an_output_on_a_read_only_file_system_is_one_sentence(verb, tmp_path, capsys) -> None:
    base, adapter = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "adapter")
    place = tmp_path / "place"
    place.mkdir()
    arguments = {
        "merge": ("merge", "--base", base, "--adapter", f"a={adapter}", "--out", place / "o"),
        "convert": ("adapter", "convert", adapter, "--to", "peft", "--out", place / "o"),
        "compress": ("analyze", adapter, "--compress", 1, "--out", place / "o"),
        "report": ("analyze", adapter, adapter, "--figure", place / "o.svg"),
        "bundle": ("adapter", "convert", adapter, "--to", "onnx_adapter", "--out",
                   place / "o.onnx_adapter"),
    }[verb]  # fmt: skip
    with read_only(place):
        result = call(capsys, *arguments)
    assert result.code == 3, result.err
    assert "Read-only file system" in result.message
    assert list(place.iterdir()) == []


def full_once(is_made: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have everything that is synced fail for want of space once a change is made."""
    real, failed = os.fsync, []

    def fsync(descriptor: int) -> None:
        if is_made():
            failed.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    return failed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", ["add", "replace", "remove"])
def test_a_disk_that_is_full_after_the_change_is_a_warning(
    copied, verb, mode, capsys, monkeypatch
) -> None:
    out, second = copied(mode)
    before = manifest_of(out)["adapters"]
    arguments = {
        "add": ("add", out, "--adapter", f"second={second}"),
        "replace": ("add", out, "--adapter", f"first={second}", "--replace"),
        "remove": ("remove", out, "first"),
    }[verb]
    with monkeypatch.context() as patch:
        failed = full_once(lambda: bool(manifest_of(out)["adapters"] != before), patch)
        result = call(capsys, *arguments, "--json")
    assert failed
    assert result.code == 0, result.err
    assert "warning: " in result.err
    assert "left behind" not in result.err
    (note,) = [each for each in result.document["notes"] if "No space left" in each]
    assert "reports could not be brought up to date" in note
    assert manifest_of(out)["adapters"] != before
    audited(out)
    assert call(capsys, "report", out).code == 0  # and now there is room
    audited(out)
    assert stagings(out, out.parent) == []


def audited(out: Path) -> None:
    from lora_export.core.manifest import read_manifest
    from lora_export.exports.integrity import audit

    assert audit(out, read_manifest(out), hashed=True).problems == ()


@pytest.mark.parametrize("verb", ["add", "remove"])
@pytest.mark.parametrize("content", [b"no JSON", b"[]", b'{"graphs": 5}', b"\xff"])
def test_a_damaged_report_is_a_warning_on_the_change(copied, verb, content, capsys) -> None:
    import hashlib

    out, second = copied("merged")
    for name in ("parity", "fidelity", "latency"):
        path = out / "reports" / f"{name}.json"
        path.write_bytes(content)
        table = manifest_of(out)
        table["files"][f"reports/{name}.json"] = hashlib.sha256(content).hexdigest()
        (out / "lora_export.json").write_text(json.dumps(table))
    arguments = {"add": ("add", out, "--adapter", f"second={second}"),
                 "remove": ("remove", out, "first")}[verb]  # fmt: skip
    result = call(capsys, *arguments, "--json")
    assert result.code == 0, result.err
    assert any("reports could not be" in each for each in result.document["notes"]), result.out
    assert set(manifest_of(out)["adapters"]) == ({"first", "second"} if verb == "add" else set())


def test_an_error_names_the_adapters_that_were_added_before_it(copied, capsys, monkeypatch) -> None:
    out, second = copied("merged")
    real = os.fsync

    def fsync(descriptor: int) -> None:
        held = manifest_of(out)["adapters"]
        if "one" in held and os.path.realpath(f"/proc/self/fd/{descriptor}").endswith("two.onnx"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    result = call(capsys, "add", out, "--adapter", f"one={second}", "--adapter", f"two={second}")
    assert result.code == 3, result.err
    assert "No space left" in result.message
    assert "in the export: one." in result.message
    assert set(manifest_of(out)["adapters"]) == {"first", "one"}


@pytest.mark.parametrize("verb", ["merge", "convert", "compress"])
def test_an_output_whose_folder_vanishes_is_one_sentence(
    verb, tmp_path, capsys, monkeypatch
) -> None:
    """The folder is removed by somebody else while the command writes."""
    base, adapter = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "adapter")
    place = tmp_path / "place"
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        shutil.rmtree(place, ignore_errors=True)

    monkeypatch.setattr("os.fsync", fsync)
    arguments: dict[str, tuple[Any, ...]] = {
        "merge": ("merge", "--base", base, "--adapter", f"a={adapter}", "--out", place / "o"),
        "convert": ("adapter", "convert", adapter, "--to", "peft", "--out", place / "o"),
        "compress": ("analyze", adapter, "--compress", 1, "--out", place / "o"),
    }
    result = call(capsys, *arguments[verb])
    assert result.code == 3, result.err
    assert "No such file or directory" in result.message
    assert "removed meanwhile" in result.message
    assert not (place / "o").exists()


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(copied, tmp_path, capsys) -> None:
    out, second = copied("merged")
    (out / ".lora_export.lock").unlink(missing_ok=True)
    (out / ".lora_export.lock").symlink_to(tmp_path / "elsewhere")
    before = manifest_of(out)
    for arguments in (("add", out, "--adapter", f"second={second}"), ("remove", out, "first")):
        result = call(capsys, *arguments)
        assert result.code == 3, result.err
        assert "is a symbolic link, not a lock file" in result.message
    assert not (tmp_path / "elsewhere").exists()
    assert manifest_of(out) == before


@pytest.mark.parametrize("verb", ["inspect", "verify", "report", "add", "remove"])
def test_a_folder_of_a_stranger_that_waits_removes_nothing(copied, verb, capsys) -> None:
    """With a file that waits and that the manifest names, as if a change had been cut short."""
    out, second = copied("merged")
    (out / "notes.txt").write_text("mine")
    waiting = out / ".lora_export.next"
    (waiting / "hf").mkdir(parents=True)
    shutil.copy(out / "hf" / "config.json", waiting / "hf" / "config.json")
    (waiting / ".gone.json").write_text('["notes.txt"]')
    (waiting / ".replaced.json").write_text(json.dumps({"notes.txt": "0" * 64}))
    arguments = {
        "inspect": ("inspect", out),
        "verify": ("verify", out),
        "report": ("report", out),
        "add": ("add", out, "--adapter", f"second={second}"),
        "remove": ("remove", out, "first"),
    }[verb]
    result = call(capsys, *arguments)
    assert result.code == 0, result.err
    assert (out / "notes.txt").read_text() == "mine"
    assert not waiting.exists()


@pytest.mark.slow
def test_adapters_that_several_commands_add_at_once_are_all_there(copied) -> None:
    out, second = copied("merged")
    names = ["a", "b", "c", "d"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "lora_export", "add", out, "--adapter", f"{name}={second}"],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    found = [(each.communicate(timeout=300)[1], each.returncode) for each in running]
    assert [code for _, code in found] == [0] * len(names), found
    assert set(manifest_of(out)["adapters"]) == {"first", *names}
    audited(out)
