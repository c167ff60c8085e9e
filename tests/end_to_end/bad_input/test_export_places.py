"""Pipes, links and folders in an export are named at once, by every command that reads it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import onnx
import pytest

from lora_export import open_export
from lora_export.core.errors import ExportDirectoryError
from tests.cli.running import call
from tests.end_to_end.bad_input.spoiling import TASK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.models import TinyModels

COMMANDS = {
    "inspect": ["inspect", "{export}"],
    "verify": ["verify", "{export}"],
    "add": ["add", "{export}", "--adapter", "other={adapter}"],
    "remove": ["remove", "{export}", "mine"],
    "report": ["report", "{export}"],
    "bench": ["bench", "{export}", "--rounds", "10", "--max-rounds", "10", "--no-startup"],
    "build": ["build", "{export}", "--target", "jetson-orin", "--dry-run"],
    "bundle": ["bundle", "{export}", "--target", "jetson-orin", "-o", "{export}.tar"],
    "preflight": ["preflight", "{export}", "--target", "jetson-orin"],
    "triton": ["triton", "{export}", "--repository", "{export}-models"],
}


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = {
    "loop": (loop, "Too many levels of symbolic links"),
    "pipe": (os.mkfifo, "it is a named pipe"),
    "folder": (os.mkdir, "it is a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device|leads outside"),
}


@pytest.fixture(scope="module")
def verified(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an export with golden outputs, and another adapter for it."""
    from lora_export.cli import run

    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=1)
    folder = tmp_path_factory.mktemp("places")
    start = ["merge-and-build", "--quiet", "--base", str(base), "--task", TASK]
    flags = [f"--adapter=mine={adapter}", "--no-latency", "--out", str(folder / "export")]
    assert run([*start, *flags]) == 0
    return folder / "export", tiny.adapter(base, seed=2)


@pytest.fixture
def export(verified: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(verified[0], tmp_path / "export")


def run_on(capsys, command: str, export: Path, adapter: Path):
    words = [each.format(export=export, adapter=adapter) for each in COMMANDS[command]]
    return call(capsys, *words)


def spoil(path: Path, kind: str) -> str:
    path.unlink()
    make, words = KINDS[kind]
    make(path)
    return words


def assert_named(result, words: str, name: str) -> None:
    text = result.out + result.err
    assert result.code == 3, text
    assert any(word in text for word in words.split("|")), text
    assert name in text
    assert "bug" not in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_manifest(command, kind, verified, export, capsys):
    words = spoil(export / "lora_export.json", kind)
    result = run_on(capsys, command, export, verified[1])
    assert_named(result, words, "lora_export.json")


READ = {
    "base.onnx": ("inspect", "verify", "add", "bench", "bundle", "preflight"),
    "mine.onnx": ("inspect", "verify", "bench", "bundle", "preflight", "triton"),
    "golden/mine.npz": ("inspect", "verify", "bundle", "triton"),
    "weights/mine.safetensors": ("inspect", "verify", "bench", "bundle", "triton"),
    "weights/base.safetensors": ("inspect", "verify", "add", "bench", "bundle", "triton"),
    "hf/config.json": ("inspect", "verify", "add", "bench", "bundle"),
    "reports/parity.json": ("inspect", "verify"),
    ".lora_export.lock": ("add", "remove"),
}


@pytest.mark.parametrize("kind", ["loop", "pipe", "folder"])
@pytest.mark.parametrize("file", READ)
def test_files_of_an_export(file, kind, verified, export, capsys):
    words = spoil(export / file, kind) + "|it is a symbolic link|Is a directory"
    for command in READ[file]:
        assert_named(run_on(capsys, command, export, verified[1]), words, file)


def _elsewhere(export: Path, location: str) -> None:
    """Let the graphs read their weights elsewhere, with hashes to match: a hostile export."""
    manifest = json.loads((export / "lora_export.json").read_text())
    for name in ("base", "mine"):
        path = export / f"{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        for each in model.graph.initializer:
            for entry in each.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["files"][path.name] = manifest["graphs"][name]["sha256"] = digest
    (export / "lora_export.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "weights/link"])
def test_weights_outside_the_export(location, verified, export, capsys):
    (export / "weights" / "link").symlink_to("/etc/passwd")
    _elsewhere(export, location)
    for command in ("inspect", "verify", "add", "bench", "bundle", "preflight", "build", "triton"):
        result = run_on(capsys, command, export, verified[1])
        assert_named(result, "leads outside its folder", location)
    with pytest.raises(ExportDirectoryError, match="leads outside its folder"):
        open_export(export)


@pytest.fixture
def read_only(export: Path) -> Iterator[Path]:
    """The export on a file system that takes nothing."""
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", export.parent], capture_output=True,
        check=False,
    )  # fmt: skip
    if not done or done.returncode != 0:
        pytest.skip("a tmpfs can only be mounted by root")
    try:
        yield export
    finally:
        subprocess.run(["umount", export.parent], check=True)


def test_verify_gives_its_verdict_on_a_read_only_disk(verified, read_only, capsys):
    shutil.copytree(verified[0], read_only)
    subprocess.run(["mount", "-o", "remount,ro", read_only.parent], check=True)
    result = call(capsys, "verify", read_only)
    assert result.code == 0, result.err
    assert "the verdict is not written down in the export" in result.err
    assert "Read-only file system" in result.err
    assert "parity of mine: pass" in result.out
    for command in ("inspect", "preflight", "build"):
        assert run_on(capsys, command, read_only, verified[1]).code == 0


def test_verify_gives_its_verdict_where_it_cannot_be_written(export, capsys):
    spoil(export / ".lora_export.lock", "folder")
    result = call(capsys, "verify", export, "--json")
    assert result.code == 0, result.err
    assert "the verdict is not written down" in result.document["notes"][0]
    assert result.document["graphs"]["mine"]["verification"] == "pass"
    assert result.document["verdict"] == "pass"


def test_verify_gives_its_verdict_where_a_report_is_damaged(export, capsys):
    (export / "reports").mkdir(exist_ok=True)
    (export / "reports" / "bench.json").symlink_to("/etc/hosts")
    result = call(capsys, "verify", export, "--json")
    assert result.code == 0, result.err
    assert "the report could not be brought up to date" in result.document["notes"][0]
    assert "leads outside" in result.document["notes"][0]
