"""``merge`` of what trainers leave in an adapter: state dicts, value heads, extra ``model.``.

The oracle is unmerged PEFT for outputs, PEFT's own merge for parameters, both in transformers.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.commands.inspect.inspect_path import inspect_pair
from lora_export.commands.merge import merge_checkpoint
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import AdapterError, UnsupportedError
from tests.helpers.merged_models import (
    ENCODER,
    TEXT,
    build,
    merged,
    outputs,
    relative,
    renamed,
    train,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return a folder with a Llama and an adapter, and what the two give in PEFT."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    model = build("LlamaForCausalLM", "LlamaConfig", TEXT, folder / "base")
    trained = train(
        LlamaForCausalLM.from_pretrained(folder / "base"),
        folder / "a",
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    assert relative(outputs(model), outputs(trained)) > 1e-2
    return folder, outputs(trained), trained.state_dict()


def test_the_state_dict_of_a_peft_model_is_the_model(llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, state = llama
    raw = shutil.copytree(folder / "a", tmp_path / "a")
    save_file({k: v.numpy() for k, v in state.items()}, raw / "adapter_model.safetensors")
    out = merged(folder / "base", raw, tmp_path / "out")
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), expected) < 2e-6


def test_a_value_head_is_dropped_on_demand(llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, _ = llama
    adapter = shutil.copytree(folder / "a", tmp_path / "a")
    file = adapter / "adapter_model.safetensors"
    tensors = {f"pretrained_model.{key}": value for key, value in load_file(file).items()}
    save_file({**tensors, "v_head.summary.weight": np.ones((1, 32), np.float32)}, file)
    fit = inspect_pair(folder / "base", adapter).fit
    assert not fit.fits
    assert "v_head.summary.weight: the value head of TRL" in fit.mismatches[0]
    spec = AdapterSpec(source=str(adapter), name="a")
    with pytest.raises(UnsupportedError, match="value head of TRL"):
        merge_checkpoint(folder / "base", [spec], tmp_path / "out")
    spec = AdapterSpec(source=str(adapter), name="a", drop=["v_head.*"])
    merge_checkpoint(folder / "base", [spec], tmp_path / "out")
    found = outputs(LlamaForCausalLM.from_pretrained(tmp_path / "out"))
    assert relative(found, expected) < 2e-6


def test_a_leftover_quantization_config_is_not_passed_on(llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, _ = llama
    base = shutil.copytree(folder / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    out = merged(base, folder / "a", tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), expected) < 2e-6


def test_empty_tensors_of_zero_3_are_refused_by_what_leaves_them(llama, tmp_path):
    folder, _, _ = llama
    adapter = shutil.copytree(folder / "a", tmp_path / "a")
    file = adapter / "adapter_model.safetensors"
    save_file({key: value[:0] for key, value in load_file(file).items()}, file)
    with pytest.raises(AdapterError) as caught:
        read_adapter(adapter, name="a", source="a")
    assert "ZeRO-3" in caught.value.hint


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("base_model.model.", "base_model.model.model."),
        lambda key: key.replace("base_model.model.model.", "base_model.model."),
        lambda key: key.replace("base_model.model.", "base_model.model.module."),
    ],
    ids=["one model. more", "one model. less", "module."],
)
def test_a_missing_or_extra_model_is_seen_through(rename, llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, _ = llama
    adapter = renamed(shutil.copytree(folder / "a", tmp_path / "a"), rename)
    out = merged(folder / "base", adapter, tmp_path / "out")
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), expected) < 2e-6


def test_an_extra_model_before_a_base_without_the_name_of_the_bare_model(tmp_path):
    from transformers import BertForSequenceClassification

    build("BertModel", "BertConfig", ENCODER, tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    settings = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    trained = train(model, tmp_path / "a", **settings)
    renamed(tmp_path / "a", lambda key: key.replace("base_model.model.", "base_model.model.model."))
    out = merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    found = outputs(BertForSequenceClassification.from_pretrained(out))
    assert relative(found, outputs(trained)) < 2e-6
