"""``merge`` of a folder with several adapters or checkpoints, and the names that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path):
    """Return a base, and a trainer's run with two checkpoints of an adapter."""
    from tests.helpers.handmade import save_adapter, save_checkpoint

    for step in (500, 1000):
        save_adapter(tmp_path / "run" / f"checkpoint-{step}")
    save_adapter(tmp_path / "Llama-3.1-8B-LoRA")
    return save_checkpoint(tmp_path / "base"), tmp_path / "run"


def test_a_folder_of_several_adapters_lists_them_and_subfolder_picks_one(run, capsys):
    from tests.cli.running import call

    base, folder = run
    command = ("merge", "--base", base, "--adapter", folder, "--out", folder / "out")
    refused = call(capsys, *command)
    assert refused.code == 3
    assert "'checkpoint-500', 'checkpoint-1000' (the newest)" in refused.err
    assert "--subfolder checkpoint-1000" in refused.err
    missing = call(capsys, *command, "--subfolder", "checkpoint-7")
    assert missing.code == 3
    assert "'checkpoint-500'" in missing.err
    assert call(capsys, *command, "--subfolder", "checkpoint-500").code == 0
    assert call(capsys, "inspect", base, folder, "--subfolder", "checkpoint-500").code == 0
    listed = call(capsys, "inspect", folder)
    assert listed.code == 3
    assert "'checkpoint-500'" in listed.err


def test_a_folder_of_checkpoints_lists_them(run, capsys):
    from tests.cli.running import call

    base, folder = run
    command = ("merge", "--base", base.parent, "--adapter", folder, "--out", folder / "out")
    refused = call(capsys, *command)
    assert refused.code == 3
    assert f"Choose one: --base {base}" in refused.err


def test_a_name_follows_from_the_folders(run, capsys):
    from tests.cli.running import call

    base, folder = run
    adapter, out = folder.parent / "Llama-3.1-8B-LoRA", folder.parent / "out"
    done = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert done.code == 0
    assert "llama-3-1-8b-lora: rank 2" in done.out
    reserved = adapter.rename(adapter.parent / "Model")
    refused = call(capsys, "merge", "--base", base, "--adapter", reserved, "--out", out / "new")
    assert refused.code == 3
    assert "'model' is reserved" in refused.err
    assert "--adapter NAME=PATH" in refused.err


def test_a_file_has_no_subfolder(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="is a file: it has no folder 'a'"):
        read_adapter(tmp_path / "x.safetensors" / "a", name="x", source="x.safetensors")
