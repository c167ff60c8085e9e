"""Unsupported variants of the PEFT format, and damaged adapters: refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.methods.table import METHODS
from lora_export.core.errors import AdapterError, UnsupportedError
from tests.helpers.peft_files import WRAPPER, pair, read, write_peft

REFUSED = {
    "alora_invocation_tokens": [3],
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"a": 1},
    "use_qalora": True,
    "velora_config": {"a": 1},
    "kasa_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "arrow_config": {"a": 1},
    "use_bdlora": {"a": 1},
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_changes_the_meaning_is_refused(setting, tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4), **{setting: REFUSED[setting]})
    with pytest.raises(UnsupportedError, match=rf"sets {setting}: ") as caught:
        read(folder)
    assert caught.value.exit_code == 4
    assert "merge_and_unload" in (caught.value.hint or "")


@pytest.mark.parametrize("setting", REFUSED)
def test_the_same_setting_left_at_its_default_is_fine(setting, tmp_path):
    for index, off in enumerate((None, False)):
        folder = write_peft(tmp_path / str(index), pair("q", 3, 4), **{setting: off})
        assert len(read(folder).low_rank) == 1


def test_no_setting_of_pefts_own_config_is_unknown_to_these_tests():
    """A new field of LoraConfig has to be judged: does it change what the tensors mean?"""
    import dataclasses

    import peft

    judged = {
        # where and how the adapter was trained, or which modules it has: the tensors tell
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "target_modules", "exclude_modules", "lora_dropout",
        "modules_to_save", "layers_to_transform", "layers_pattern", "runtime_config", "bias",
        "qalora_group_size", "megatron_core", "fan_in_fan_out",
        # the scale
        "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
        # what the tensors do; see test_variants
        "use_dora", "lora_bias", "trainable_token_indices", "ensure_weight_tying",
        # which parameters; see tests/commands/test_merge_experts.py
        "target_parameters",
        # how it was initialised; see the test below
        "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert known - judged - set(REFUSED) == set()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "PiSSA"])
def test_a_residual_base_is_noted(tmp_path, start):
    adapter = read(write_peft(tmp_path, pair("q", 3, 4), init_lora_weights=start))
    assert adapter.residual == start
    assert read(write_peft(tmp_path, pair("q", 3, 4), init_lora_weights=True)).residual is None


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "LoftQ", "pissa_niter_x"])
def test_an_initialisation_that_changed_the_base_is_refused(start, tmp_path):
    # PEFT takes the initial update off the base when it loads such an adapter: W + s·B A of the
    # published base is another model (0.7 to 0.8 relative). Converted adapters say ``true``.
    folder = write_peft(tmp_path, pair("q", 3, 4), init_lora_weights=start)
    with pytest.raises(UnsupportedError, match="init_lora_weights"):
        read(folder)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", None])
def test_an_initialisation_that_left_the_base_alone_is_fine(start, tmp_path):
    assert read(write_peft(tmp_path, pair("q", 3, 4), init_lora_weights=start)).low_rank


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "XLORA", "lora", "", None, 7])
def test_a_kind_that_is_not_merged_is_refused(kind, tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4), peft_type=kind)
    with pytest.raises(UnsupportedError, match="has the peft_type") as caught:
        read(folder)
    assert repr(kind) in caught.value.message


@pytest.mark.parametrize("left", ["A", "B"])
def test_half_a_pair_is_refused(left, tmp_path):
    tensors = {k: v for k, v in pair("enc.q", 3, 4).items() if f"lora_{left}" in k}
    with pytest.raises(AdapterError, match=rf"'enc\.q'.*has only {left}"):
        read(write_peft(tmp_path, tensors))


def test_half_an_embedding_pair_is_refused(tmp_path):
    tensors = {f"{WRAPPER}wte.lora_embedding_A": np.ones((2, 9), np.float32)}
    with pytest.raises(AdapterError, match=r"'wte'.*has only embedding_A"):
        read(write_peft(tmp_path, tensors))


def test_linear_and_embedding_factors_of_one_module_are_refused(tmp_path):
    tensors = {
        **pair("wte", 3, 4),
        f"{WRAPPER}wte.lora_embedding_A": np.ones((2, 3), np.float32),
        f"{WRAPPER}wte.lora_embedding_B": np.ones((4, 2), np.float32),
    }
    with pytest.raises(AdapterError, match="'wte'"):
        read(write_peft(tmp_path, tensors))


def test_rank_0_is_refused(tmp_path):
    tensors = {
        f"{WRAPPER}q.lora_A.weight": np.zeros((0, 3), np.float32),
        f"{WRAPPER}q.lora_B.weight": np.zeros((4, 0), np.float32),
    }
    with pytest.raises(AdapterError, match="rank of at least 1"):
        read(write_peft(tmp_path, tensors, r=0))


def test_factors_of_two_ranks_are_refused(tmp_path):
    tensors = {**pair("q", 3, 4, r=2)}
    tensors[f"{WRAPPER}q.lora_B.weight"] = np.ones((4, 3), np.float32)
    with pytest.raises(AdapterError, match=r"'q'.*\[2, 3\].*\[4, 3\]"):
        read(write_peft(tmp_path, tensors))


@pytest.mark.parametrize("settings", [{"r": 3}, {"rank_pattern": {"q": 1}}, {"r": None}])
def test_a_rank_that_contradicts_the_config_is_refused(settings, tmp_path):
    with pytest.raises(AdapterError, match="has rank 2, but its config says"):
        read(write_peft(tmp_path, pair("enc.q", 3, 4), **settings))


@pytest.mark.parametrize("alpha", [None, "16", True, [1], float("nan"), float("inf")])
def test_an_alpha_that_is_no_finite_number_is_refused(alpha, tmp_path):
    with pytest.raises(AdapterError, match="lora_alpha"):
        read(write_peft(tmp_path, pair("q", 3, 4), lora_alpha=alpha))


def test_an_integer_tensor_is_refused_by_name(tmp_path):
    tensors = {**pair("q", 3, 4), f"{WRAPPER}head.weight": np.ones((2, 2), np.int32)}
    with pytest.raises(AdapterError, match=r"head\.weight.*int32"):
        read(write_peft(tmp_path, tensors))


@pytest.mark.parametrize(
    "key",
    [
        "q.lora_A.bias",
        "q.lora_A.default.more.weight",
        "q.token_adapter.trainable_tokens_original",
        "q.lora_C.weight",
        "q.lora_embedding_A.weight",
    ],
)
def test_a_lora_tensor_of_no_known_kind_is_refused_never_taken_for_a_parameter(key, tmp_path):
    tensors = {**pair("q", 3, 4), WRAPPER + key: np.ones(4, np.float32)}
    with pytest.raises(UnsupportedError, match="an unknown kind") as caught:
        read(write_peft(tmp_path, tensors))
    assert key in caught.value.message


def test_convolution_factors_of_two_kernels_are_refused(tmp_path):
    tensors = {
        f"{WRAPPER}conv.lora_A.weight": np.ones((2, 3, 3, 3), np.float32),
        f"{WRAPPER}conv.lora_B.weight": np.ones((4, 2, 3, 3), np.float32),
    }
    with pytest.raises(AdapterError, match="do not share a rank"):
        read(write_peft(tmp_path, tensors))


def test_an_adapter_without_tensors_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="no tensors"):
        read(write_peft(tmp_path, {}))


def test_weights_that_are_missing_are_named(tmp_path):
    write_peft(tmp_path, pair("q", 3, 4))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors or adapter_model\.bin"):
        read(tmp_path)


def test_damaged_weights_are_an_adapters_fault(tmp_path):
    write_peft(tmp_path, pair("q", 3, 4))
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AdapterError, match="not a valid safetensors file"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"peft_type": '])
def test_a_config_that_is_no_table_is_refused(text, tmp_path):
    write_peft(tmp_path, pair("q", 3, 4))
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        read(tmp_path)


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<x"])
def test_a_pattern_that_is_no_expression_is_refused(pattern, tmp_path):
    with pytest.raises(AdapterError, match="alpha_pattern"):
        read(write_peft(tmp_path, pair("q", 3, 4), alpha_pattern={pattern: 1}))


@pytest.mark.parametrize("patterns", [["q"], "q", 3])
def test_patterns_that_are_no_table_are_refused(patterns, tmp_path):
    with pytest.raises(AdapterError, match="rank_pattern"):
        read(write_peft(tmp_path, pair("q", 3, 4), rank_pattern=patterns))


def test_what_is_no_folder_or_no_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="not a directory"):
        read_adapter(tmp_path / "gone", name="x", source="gone")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(AdapterError, match="no known adapter format"):
        read_adapter(tmp_path, name="x", source="here")


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_tensors_of_lora_under_another_method_are_refused(tmp_path, kind):
    folder = write_peft(tmp_path, pair("q", 3, 4), peft_type=kind)
    with pytest.raises(AdapterError, match=f"has the peft_type {kind}, and no tensors of it"):
        read(folder)


def test_an_activated_lora_is_refused_by_name(tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4), alora_invocation_tokens=[3])
    with pytest.raises(UnsupportedError, match="activated LoRA depends on the input"):
        read(folder)
