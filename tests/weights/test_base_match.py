"""The base that a converted adapter records: taken again, and every other one refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.known_base import METADATA_KEY
from lora_export.core.errors import AdapterError
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.fingerprint import fingerprint
from tests.cli.running import call
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"


@pytest.fixture
def made(tiny, tmp_path, capsys) -> tuple[Path, Path]:
    """A base, and an adapter that records it."""
    base = tiny.base("gpt2", TASK)
    adapter = tiny.adapter(base, task=TASK, target_modules=["c_attn"], fan_in_fan_out=True)
    out = tmp_path / "recorded"
    done = call(capsys, "adapter", "convert", adapter, "--to", "peft", "--out", out, "--base", base)
    assert done.code == 0, done.err
    return base, out


def changed(base: Path, folder: Path, part: str) -> Path:
    """Return a copy of `base` in which one number of the first tensor named so is another."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in sorted(tensors) if part in name)
    tensors[name].reshape(-1)[-1] += 0.01
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def merge(capsys, base: Path, adapter: Path, out: Path):
    return call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out)


def test_what_is_recorded_and_that_peft_loads_it(made) -> None:
    base, adapter = made
    with safe_open(adapter / "adapter_model.safetensors", "np") as file:
        table = json.loads(file.metadata()[METADATA_KEY])
    assert table["fingerprint"] == fingerprint(open_checkpoint(base))
    assert list(table["tensors"]) == sorted(
        name for name in load_file(base / "model.safetensors") if name.endswith("c_attn.weight")
    )
    assert len(table["tensors"]) == 2
    PeftModel.from_pretrained(load_tiny(base, TASK), str(adapter))


def test_merge_takes_it_and_names_the_tensor_that_differs(made, tmp_path, capsys) -> None:
    base, adapter = made
    assert merge(capsys, base, adapter, tmp_path / "good").code == 0
    elsewhere = changed(base, tmp_path / "c", "ln_f.weight")
    assert merge(capsys, elsewhere, adapter, tmp_path / "fine").code == 0
    other = changed(base, tmp_path / "d", "h.1.attn.c_attn.weight")
    refused = merge(capsys, other, adapter, tmp_path / "bad")
    assert refused.code == 3
    assert "h.1.attn.c_attn.weight: SHA-256 is" in refused.err
    assert "h.0.attn" not in refused.err
    assert not (tmp_path / "bad").exists()
    again = ("adapter", "convert", adapter, "--to", "peft", "--out", tmp_path / "again", "--base")
    assert call(capsys, *again, other).code == 0
    assert merge(capsys, other, tmp_path / "again", tmp_path / "taken").code == 0


def test_another_dtype_is_told_by_headers(made, tmp_path, capsys) -> None:
    base, adapter = made
    halves = shutil.copytree(base, tmp_path / "h")
    tensors = load_file(base / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, halves / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    refused = merge(capsys, halves, adapter, tmp_path / "bad")
    assert refused.code == 3
    assert "float16 [32, 96], recorded is float32 [32, 96]" in refused.err
    shown = call(capsys, "inspect", halves, adapter)
    assert shown.code == 3
    assert "another base, by its headers" in shown.out


def test_inspect_reads_values_only_when_told_to(made, tmp_path, capsys) -> None:
    base, adapter = made
    assert "--hash compares the values" in call(capsys, "inspect", base, adapter).out
    other = changed(base, tmp_path / "c", "c_attn.weight")
    assert call(capsys, "inspect", other, adapter).code == 0
    assert "recorded ones" in call(capsys, "inspect", base, adapter, "--hash").out
    found = call(capsys, "inspect", other, adapter, "--hash")
    assert found.code == 3
    assert "c_attn.weight: SHA-256 is" in found.out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exports_compare_too(dtype, made, tmp_path, capsys) -> None:
    base, adapter = made
    good, bad = (
        changed(base, tmp_path / "c", "ln_f.weight"),
        changed(base, tmp_path / "d", "c_attn.w"),
    )
    build = ("merge-and-build", "--no-verify", "--dtype", dtype, "--base")
    wrong = call(capsys, *build, bad, "--adapter", f"x={adapter}", "--out", tmp_path / "0")
    assert wrong.code == 3
    assert not (tmp_path / "0").exists()
    for name, folder in (("1", base), ("2", good), ("3", bad)):
        assert call(capsys, *build, folder, "--out", tmp_path / name).code == 0
    add = ("--adapter", f"x={adapter}")
    assert call(capsys, "add", tmp_path / "1", *add).code == 0
    assert call(capsys, "add", tmp_path / "2", *add).code == (0 if dtype == "float32" else 3)
    assert call(capsys, "add", tmp_path / "2", *add, "--base", good, "--replace").code == 0
    refused = call(capsys, "add", tmp_path / "3", *add)
    assert refused.code == 3
    assert ("c_attn.weight: SHA" if dtype == "float32" else "made for another base") in refused.err


def test_a_record_that_is_damaged(made) -> None:
    _, adapter = made
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    row = {"fingerprint": "0" * 64, "tensors": {"a": ["float32", [1.5], "0" * 16]}}
    for text in ("", "[]", '{"fingerprint": "x", "tensors": {}}', json.dumps(row)):
        save_file(tensors, path, {"format": "pt", METADATA_KEY: text})
        with pytest.raises(AdapterError, match="damaged"):
            read_adapter(adapter, name="x", source="x")


def test_a_base_known_by_another_name_is_taken(made, tmp_path, capsys) -> None:
    base, adapter = made
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "somebody/else"}))
    assert merge(capsys, base, adapter, tmp_path / "out").code == 0
    path.write_text(json.dumps(config))
    assert merge(capsys, base, adapter, tmp_path / "known").code == 0
    found, known = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "known"))
    before = load_file(base / "model.safetensors")
    assert [name for name in known if (found[name] != known[name]).any()] == []
    assert any((found[name] != before[name]).any() for name in before)
