"""The PEFT format: scales as PEFT itself computes them, and everything else refused by name."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.peft import read_peft
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.tensors import read_all
from tests.helpers.models import load_tiny
from tests.helpers.peft_files import WRAPPER, pair, write_peft


def read(folder):
    return read_peft(folder, name="x", source=str(folder))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"value": 2, r"layer\.0\.attention\.self\.query": 3}},
    "alpha pattern": {"alpha_pattern": {"query": 32, "layer.1.attention.self.value": 1}},
    "both patterns, rslora": {
        "rank_pattern": {"query": 6},
        "alpha_pattern": {"0.attention.self.query": 5},
        "use_rslora": True,
    },
    "first match wins": {
        "alpha_pattern": {"self.query": 3, "query": 99, ".*query": 7},
        "rank_pattern": {".*layer.0.*": 1, "query": 2},
    },
    "a pattern of part of a name": {"alpha_pattern": {"uery": 99, "self.quer": 98}},
    "an alternative": {"alpha_pattern": {"query|value": 20}},
    "an anchored pattern": {"rank_pattern": {"^bert.encoder.layer.1.attention.self.query": 7}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_scales_are_those_of_peft_on_a_real_model(variant, tiny):
    import peft

    base = tiny.base("bert")
    folder = tiny.adapter(base, **VARIANTS[variant])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(
            load_tiny(base, "text-classification", labels_count=3), str(folder)
        )
    expected = {
        name.removeprefix("base_model.model."): (
            module.scaling["default"],
            module.r["default"],
        )
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    adapter = read(folder)
    found = {update.module: (update.scale, update.rank) for update in adapter.low_rank}
    assert len(expected) == 4
    assert found == expected


def test_every_tensor_of_the_file_is_accounted_for(tiny):
    folder = tiny.adapter(tiny.base("bert"), bias="all")
    adapter = read(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    assert adapter.tensor_count == len(stored)
    found = {}
    for update in adapter.low_rank:
        found[f"{WRAPPER}{update.module}.lora_A.weight"] = read_all(update.a)
        found[f"{WRAPPER}{update.module}.lora_B.weight"] = read_all(update.b)
    for saved in adapter.saved:
        found[saved.tensor.name] = read_all(saved.tensor)
    assert {*found, *adapter.repeated} == set(stored)
    assert set(adapter.repeated) == {
        f"{WRAPPER}classifier.{copy}.bias" for copy in ("modules_to_save", "original_module")
    }
    for name, values in found.items():
        np.testing.assert_array_equal(values, stored[name])


def test_what_the_format_records_is_kept(tiny):
    adapter = read(tiny.adapter(tiny.base("bert")))
    assert adapter.format == "peft"
    assert adapter.task_type == "SEQ_CLS"
    assert adapter.max_rank == 4
    assert {saved.parameter for saved in adapter.saved} == {"classifier.weight", "classifier.bias"}


def test_embedding_factors_have_no_weight_suffix(tiny):
    folder = tiny.adapter(tiny.base("bert"), target_modules=["word_embeddings", "query"])
    by_module = {update.module: update for update in read(folder).low_rank}
    embedding = by_module.pop("bert.embeddings.word_embeddings")
    assert embedding.embedding
    assert embedding.a.shape == (4, 200)
    assert embedding.b.shape == (32, 4)
    assert not any(update.embedding for update in by_module.values())


def test_a_pickled_adapter_equals_its_safetensors_twin(tmp_path, tiny):
    folder = tiny.adapter(tiny.base("bert"))
    shutil.copytree(folder, tmp_path / "bin")
    stored = load_file(folder / "adapter_model.safetensors")
    (tmp_path / "bin" / "adapter_model.safetensors").unlink()
    torch.save(
        {name: torch.from_numpy(value) for name, value in stored.items()},
        tmp_path / "bin" / "adapter_model.bin",
    )
    ours, theirs = read(tmp_path / "bin"), read(folder)
    assert [(u.module, u.scale) for u in ours.low_rank] == [
        (u.module, u.scale) for u in theirs.low_rank
    ]
    for one, other in zip(ours.low_rank, theirs.low_rank, strict=True):
        np.testing.assert_array_equal(read_all(one.a), read_all(other.a))
        np.testing.assert_array_equal(read_all(one.b), read_all(other.b))
    assert ours.sha256 != theirs.sha256


def test_the_hash_covers_config_and_weights(tmp_path):
    first = write_peft(tmp_path / "a", pair("q", 3, 4))
    again = write_peft(tmp_path / "b", pair("q", 3, 4))
    scaled = write_peft(tmp_path / "c", pair("q", 3, 4), lora_alpha=5)
    other = write_peft(tmp_path / "d", pair("q", 3, 4, seed=1))
    assert read(first).sha256 == read(again).sha256
    assert len({read(folder).sha256 for folder in (first, scaled, other)}) == 3


# ----------------------------------------------------------------------------------- refusals

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


@pytest.mark.parametrize("kind", ["LOHA", "IA3", "ADALORA", "lora", "", None, 7])
def test_another_kind_than_lora_is_refused(kind, tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4), peft_type=kind)
    with pytest.raises(UnsupportedError, match="only LORA") as caught:
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


def test_alpha_may_be_a_fraction(tmp_path):
    (update,) = read(write_peft(tmp_path, pair("q", 3, 4), lora_alpha=0.5)).low_rank
    assert update.scale == 0.25
    folder = write_peft(tmp_path / "rs", pair("q", 3, 4), lora_alpha=3, use_rslora=True)
    assert read(folder).low_rank[0].scale == pytest.approx(3 / math.sqrt(2), rel=1e-15)


def test_an_integer_tensor_is_refused_by_name(tmp_path):
    tensors = {**pair("q", 3, 4), f"{WRAPPER}head.weight": np.ones((2, 2), np.int32)}
    with pytest.raises(AdapterError, match=r"head\.weight.*int32"):
        read(write_peft(tmp_path, tensors))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_dtypes_are_read(dtype, tmp_path):
    tensors = {key: value.astype(dtype) for key, value in pair("q", 3, 4).items()}
    (update,) = read(write_peft(tmp_path, tensors)).low_rank
    np.testing.assert_array_equal(
        read_all(update.a).astype(np.float64),
        tensors[f"{WRAPPER}q.lora_A.weight"].astype(np.float64),
    )


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
    with pytest.raises(UnsupportedError, match="no known kind") as caught:
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


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "x" * 600])
def test_a_pattern_that_is_no_expression_is_refused(pattern, tmp_path):
    with pytest.raises(AdapterError, match="alpha_pattern"):
        read(write_peft(tmp_path, pair("q", 3, 4), alpha_pattern={pattern: 1}))


@pytest.mark.parametrize("patterns", [["q"], "q", 3])
def test_patterns_that_are_no_table_are_refused(patterns, tmp_path):
    with pytest.raises(AdapterError, match="rank_pattern"):
        read(write_peft(tmp_path, pair("q", 3, 4), rank_pattern=patterns))


def test_base_layer_and_modules_to_save_wrappers_are_taken_off(tmp_path):
    tensors = {
        **pair("q.base_layer", 3, 4),
        f"{WRAPPER}k.base_layer.bias": np.ones(4, np.float32),
        f"{WRAPPER}head.modules_to_save.weight": np.ones((2, 4), np.float32),
    }
    adapter = read(write_peft(tmp_path, tensors))
    assert [update.module for update in adapter.low_rank] == ["q"]
    assert {saved.parameter for saved in adapter.saved} == {"k.bias", "head.weight"}


# ----------------------------------------------------------------------------------- detection


def test_detection_reads_a_peft_folder(tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4))
    assert read_adapter(folder, name="x", source="where").source == "where"


def test_what_is_no_folder_or_no_adapter_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="not a directory"):
        read_adapter(tmp_path / "gone", name="x", source="gone")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(AdapterError, match="no adapter that is recognised"):
        read_adapter(tmp_path, name="x", source="here")


@pytest.mark.parametrize("kind", ["VERA", "IA3", "LOHA", "LOKR", "OFT"])
def test_another_kind_of_adapter_is_refused_by_name(tmp_path, kind):
    folder = write_peft(tmp_path, pair("q", 3, 4), peft_type=kind)
    with pytest.raises(UnsupportedError, match=f"is of the kind '{kind}'; only LORA is merged"):
        read(folder)


def test_an_activated_lora_is_refused_by_name(tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4), alora_invocation_tokens=[3])
    with pytest.raises(UnsupportedError, match="activated LoRA depends on the input"):
        read(folder)
