"""Wrappers around names: PEFT's own factors are found whatever a training program put around."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.adapters.formats.peft import read_peft
from lora_export.adapters.wrappers import plainer_names, refuse_training_only
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.tensors import read_all
from tests.helpers.peft_files import WRAPPER, pair, write_peft

MODULE = "model.layers.0.self_attn.q_proj"
WRAPPED = {
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "torch.compile, inside PEFT": lambda key: key.replace(WRAPPER, f"{WRAPPER}_orig_mod."),
    "DDP": lambda key: f"module.{key}",
    "DDP of a compiled model": lambda key: f"module._orig_mod.{key}",
    "FSDP, by layer": lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
    "FSDP and checkpointing": lambda key: (
        "_fsdp_wrapped_module."
        + key.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
    ),
    "PEFT twice": lambda key: WRAPPER + key,
    "PEFT three times": lambda key: WRAPPER * 2 + key,
    "TRL": lambda key: f"pretrained_model.{key}",
    "TRL under DeepSpeed": lambda key: f"module.pretrained_model.{key}",
    "PEFT around a compiled PEFT": lambda key: f"{WRAPPER}_orig_mod.{key}",
    "the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "another name": lambda key: key.replace(".weight", ".sql-v2.weight"),
    "no prefix": lambda key: key.removeprefix(WRAPPER),
}


def read(folder):
    return read_peft(folder, name="x", source=str(folder))


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_factors_are_found_behind(wrapper, tmp_path):
    plain = pair(MODULE, 3, 4)
    adapter = read(write_peft(tmp_path, {WRAPPED[wrapper](k): v for k, v in plain.items()}))
    (update,) = adapter.low_rank
    assert update.module == MODULE
    assert np.array_equal(read_all(update.a), plain[f"{WRAPPER}{MODULE}.lora_A.weight"])
    assert np.array_equal(read_all(update.b), plain[f"{WRAPPER}{MODULE}.lora_B.weight"])
    assert adapter.renamed


def test_what_save_pretrained_writes_is_not_renamed(tmp_path):
    assert not read(write_peft(tmp_path, pair(MODULE, 3, 4))).renamed


def test_every_kind_of_tensor_may_hold_the_adapters_name(tmp_path):
    tensors = {
        f"{WRAPPER}wte.lora_embedding_A.sql": np.ones((2, 9), np.float32),
        f"{WRAPPER}wte.lora_embedding_B.sql": np.ones((4, 2), np.float32),
        f"{WRAPPER}wte.lora_magnitude_vector.sql": np.ones(4, np.float32),
        f"{WRAPPER}q.lora_A.sql.weight": np.ones((2, 3), np.float32),
        f"{WRAPPER}q.lora_B.sql.weight": np.ones((4, 2), np.float32),
        f"{WRAPPER}q.lora_magnitude_vector.sql.weight": np.ones(4, np.float32),
        f"{WRAPPER}score.modules_to_save.sql.weight": np.ones((2, 4), np.float32),
        f"{WRAPPER}score.original_module.weight": np.zeros((2, 4), np.float32),
    }
    adapter = read(write_peft(tmp_path, tensors, use_dora=True, modules_to_save=["score"]))
    assert {update.module for update in adapter.low_rank} == {"wte", "q"}
    assert all(update.magnitude is not None for update in adapter.low_rank)
    assert [saved.parameter for saved in adapter.saved] == ["score.weight"]
    assert adapter.tensor_count == len(tensors)


def test_several_adapters_in_one_file_are_refused_by_their_names(tmp_path):
    tensors = pair(MODULE, 3, 4)
    several = {
        key.replace(".weight", f".{name}.weight"): value
        for key, value in tensors.items()
        for name in ("sql", "chat")
    }
    with pytest.raises(AdapterError, match="several adapters: 'chat', 'sql'") as caught:
        read(write_peft(tmp_path, several))
    assert "selected_adapters=['chat']" in caught.value.hint


def test_a_named_adapter_beside_an_unnamed_one_is_refused(tmp_path):
    tensors = pair(MODULE, 3, 4)
    named = {key.replace(".weight", ".sql.weight"): value for key, value in tensors.items()}
    with pytest.raises(AdapterError, match="of one without a name"):
        read(write_peft(tmp_path, tensors | named))


def test_module_may_be_a_models_own_name():
    assert plainer_names("module.layers.0.module.q.weight") == (
        "layers.0.module.q.weight",
        "layers.0.q.weight",
    )
    assert plainer_names("layers.0.q.weight") == ()


def test_a_value_head_is_refused_by_what_it_is():
    with pytest.raises(UnsupportedError, match="TRL's AutoModelForCausalLMWithValueHead") as caught:
        refuse_training_only(["lm_head.weight", "v_head.summary.weight"], "a")
    assert "--drop 'v_head.*'" in caught.value.hint
