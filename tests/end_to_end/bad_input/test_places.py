"""Outputs that are links, devices or somebody else's; several commands into one output."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.running import REPOSITORY, call, snapshot, stagings
from tests.helpers.bundles import pack_plain
from tests.helpers.handmade import save_adapter, save_checkpoint
from tests.ondevice.test_file_writing import make, what_is_there

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["link", "dangling", "loop", "pipe", "socket", "device"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def commands(tmp_path: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """Return commands that write `out`, each a whole or not at all."""
    base, adapter = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "adapter")
    return {
        "merge": ("merge", "--base", base, "--adapter", f"a={adapter}", "--out", out),
        "convert": ("adapter", "convert", adapter, "--to", "peft", "--out", out),
        "compress": ("analyze", adapter, "--compress", 1, "--out", out),
        "pack": ("adapter", "convert", adapter, "--to", "onnx_adapter", "--out",
                 out.with_suffix(".onnx_adapter")),
        "figure": ("analyze", adapter, adapter, "--figure", out),
        "unpack": ("bundle", "unpack", pack_plain(tmp_path / "plain.tar"), "--out", out),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["merge", "convert", "compress", "pack", "figure", "unpack"])
def test_what_is_no_output_of_ours_stays(verb, kind, place, tmp_path, capsys) -> None:
    arguments = commands(tmp_path, place / "out")[verb]
    make(kind, next(each for each in arguments if str(each).startswith(str(place))))
    before = what_is_there(place)
    result = call(capsys, *arguments)
    assert result.code == 3, result.err
    assert str(place / "out") in result.message
    assert what_is_there(place) == before


@pytest.mark.parametrize("kind", [*KINDS, "text", "empty", "archive"])
def test_only_a_bundle_is_replaced_by_one(kind, place) -> None:
    from lora_export.bundle.packing import require_replaceable
    from lora_export.core.errors import BundleError

    path = place / "out.tar"
    if kind == "archive":
        (place / "file").write_bytes(b"mine")
        subprocess.run(["tar", "cf", path, "-C", place, "file"], check=True)
    elif kind in {"text", "empty"}:
        path.write_bytes(b"mine" if kind == "text" else b"")
    elif kind == "link":
        path.symlink_to(pack_plain(place / "victim"))
    else:
        make(kind, path)
    before = what_is_there(place)
    with pytest.raises(BundleError, match="exists and is not a bundle") as caught:
        require_replaceable(path)
    assert caught.value.exit_code == 3
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        pack_plain(path)
    assert what_is_there(place) == before


def test_a_bundle_is_replaced_by_one(place) -> None:
    first = pack_plain(place / "out.tar").stat().st_ino
    assert pack_plain(place / "out.tar").stat().st_ino != first


STARTED = """
import sys, time
from lora_export.cli import run
import lora_export.commands.merge, lora_export.commands.convert
import lora_export.commands.analyze.analysis, lora_export.bundle.packing
print("ready", flush=True)
sys.stdin.readline()
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "verb",
    [
        "merge",
        pytest.param("pack", marks=pytest.mark.slow),
        pytest.param("unpack", marks=pytest.mark.slow),
    ],
)
def test_of_several_commands_into_one_output_one_writes(verb, place, tmp_path) -> None:
    arguments = [str(each) for each in commands(tmp_path, place / "deep" / "out")[verb]]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for each in running:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in running:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    found = [(each.communicate(timeout=120)[1], each.returncode) for each in running]
    assert sorted(code for _, code in found) == [0, 3, 3, 3], found
    for err, code in found:
        assert "Traceback" not in err
        assert code == 0 or "another process has written" in err or "exists" in err, err
    assert stagings(place, place / "deep") == []
    assert snapshot(place / "deep")


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_the_umask_holds_for_what_commands_write(umask, place, tmp_path, capsys) -> None:
    before = os.umask(umask)
    try:
        for verb in ("merge", "convert", "compress", "pack", "unpack"):
            assert call(capsys, *commands(tmp_path / verb, place / verb)[verb]).code == 0
    finally:
        os.umask(before)
    modes = {
        path.relative_to(place).as_posix(): path.stat().st_mode & umask for path in place.rglob("*")
    }
    assert len(modes) > 10
    assert {name for name, mode in modes.items() if mode} == set()
