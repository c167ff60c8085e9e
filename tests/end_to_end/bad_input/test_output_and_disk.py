"""Outputs that are not ours, and disks that are full."""

from __future__ import annotations

import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli.exports import assert_intact
from tests.cli.running import call, command, snapshot, stagings
from tests.end_to_end.bad_input.spoiling import (
    TASK,
    Inputs,
    assert_refused,
    build,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_output_that_is_not_ours_is_left_alone(inputs: Inputs, capsys) -> None:
    inputs.out.mkdir()
    (inputs.out / "precious.txt").write_text("mine")
    result = build(capsys, inputs)
    assert result.code == 3
    assert "not an export directory" in result.message
    assert {p.name for p in inputs.out.iterdir()} == {"precious.txt"}
    assert stagings(inputs.out.parent) == []


def test_output_that_is_a_file_is_left_alone(inputs: Inputs, capsys) -> None:
    inputs.out.write_text("mine")
    result = build(capsys, inputs)
    assert result.code == 3
    assert str(inputs.out) in result.message
    assert inputs.out.read_text() == "mine"


def test_output_below_a_file_is_one_message(inputs: Inputs, capsys) -> None:
    (inputs.out.parent / "file").write_text("mine")
    result = build(capsys, inputs._replace(out=inputs.out.parent / "file" / "out"))
    assert result.code == 3
    assert "file" in result.message


def test_output_that_is_empty_is_taken(inputs: Inputs, capsys) -> None:
    inputs.out.mkdir()
    assert build(capsys, inputs).code == 0
    assert_intact(inputs.out)


def limit_files(size_bytes: int) -> Callable[[], None]:
    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    return apply


@pytest.mark.parametrize("size_bytes", [0, 4096, 100_000])
def test_full_disk_while_building(inputs: Inputs, capsys, size_bytes: int) -> None:
    warm = call(capsys, "export", "--base", inputs.base, "--task", TASK,
                "--out", inputs.out.parent.parent / "warm")  # fmt: skip
    assert warm.code == 0  # the graph is cached: what is too large is the export
    result = command("export", "--base", inputs.base, "--adapter", f"mine={inputs.adapter}",
                     "--task", TASK, "--out", inputs.out,
                     before=limit_files(size_bytes))  # fmt: skip
    assert_refused(result, inputs, 3, "cannot write")


@pytest.mark.parametrize("size_bytes", [0, 1000, 4000, 12_000])
def test_full_disk_while_adding_leaves_the_export_as_it_was(inputs, capsys, size_bytes) -> None:
    built = call(capsys, "export", "--base", inputs.base, "--task", TASK, "--out", inputs.out)
    assert built.code == 0, built.err
    before = snapshot(inputs.out)
    result = command("add", inputs.out, "--adapter", f"mine={inputs.adapter}",
                     before=limit_files(size_bytes))  # fmt: skip
    assert result.code == 3
    assert "cannot write" in result.message
    assert snapshot(inputs.out) == before
    assert stagings(inputs.out.parent) == []


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 200 KB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("a tmpfs can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk_of_a_real_file_system(inputs: Inputs, small_disk: Path, capsys) -> None:
    small = inputs._replace(out=small_disk / "parent" / "out")
    small.out.parent.mkdir()
    (small_disk / "filler").write_bytes(b"\0" * 100_000)
    assert_refused(build(capsys, small), small, 3, "No space left on device")
    (small_disk / "filler").unlink()
