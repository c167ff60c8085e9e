"""Modules that the config targets and the file lacks: a note, and PEFT leaves them alone too."""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.missing_modules import missing_modules
from lora_export.weights.checkpoint import open_checkpoint
from tests.cli.running import call
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"


def trimmed(adapter: Path, folder: Path, word: str) -> Path:
    """Copy an adapter without the tensors that have `word` in their names."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if word not in k}, path)
    return folder


def missing(base: Path, adapter: Path, **config: Any) -> tuple[str, ...]:
    checkpoint = open_checkpoint(base)
    read = read_adapter(adapter, name="x", source="x")
    return missing_modules(read, checkpoint.tensors, {**checkpoint.config, **config})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_whole_file_lacks_nothing(kind, tiny) -> None:
    task = "text-classification" if kind == "bert" else TASK
    for base_task in (task, "feature-extraction"):
        base = tiny.base(kind, base_task)
        assert missing(base, tiny.adapter(base, task=task)) == ()


def test_a_layer_without_tensors_is_noted_and_stays_the_bases(tiny, tmp_path, capsys) -> None:
    import peft

    base = tiny.base("llama", TASK)
    targets = ["q_proj", "v_proj", "down_proj"]
    whole = tiny.adapter(base, task=TASK, target_modules=targets)
    adapter = trimmed(whole, tmp_path / "a", "layers.1.self_attn")
    lost = ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    assert sorted(missing(base, adapter)) == lost
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", tmp_path / "out",
                  "--json")  # fmt: skip
    assert result.code == 0, result.err
    (note,) = result.document["notes"]
    assert "2 module(s)" in note
    assert repr(lost[0]) in note
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(load_tiny(base, TASK), str(adapter))
        wanted = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in merged.items():
        np.testing.assert_allclose(value, wanted[name].numpy(), atol=1e-6, err_msg=name)


def test_what_the_model_may_not_have_is_not_counted(tiny, tmp_path) -> None:
    base = tiny.base("llama", TASK)
    whole = tiny.adapter(base, task=TASK, target_modules=["q_proj", "k_proj", "down_proj"])
    shared = trimmed(whole, tmp_path / "a", "layers.1.self_attn.k_proj")
    assert len(missing(base, shared)) == 1
    assert missing(base, shared, num_kv_shared_layers=1) == ()
    assert missing(base, shared, num_hidden_layers=1) == ()
    assert missing(base, trimmed(whole, tmp_path / "b", "down_proj")) == ()  # of no layer
