"""The PEFT format: scales as PEFT itself computes them, and every tensor accounted for."""

from __future__ import annotations

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
from lora_export.core.tensors import read_all
from tests.helpers.models import load_tiny
from tests.helpers.peft_files import WRAPPER, pair, read, write_peft

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


def test_alpha_may_be_a_fraction(tmp_path):
    (update,) = read(write_peft(tmp_path, pair("q", 3, 4), lora_alpha=0.5)).low_rank
    assert update.scale == 0.25
    folder = write_peft(tmp_path / "rs", pair("q", 3, 4), lora_alpha=3, use_rslora=True)
    assert read(folder).low_rank[0].scale == pytest.approx(3 / math.sqrt(2), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floating_dtypes_are_read(dtype, tmp_path):
    tensors = {key: value.astype(dtype) for key, value in pair("q", 3, 4).items()}
    (update,) = read(write_peft(tmp_path, tensors)).low_rank
    np.testing.assert_array_equal(
        read_all(update.a).astype(np.float64),
        tensors[f"{WRAPPER}q.lora_A.weight"].astype(np.float64),
    )


def test_base_layer_and_modules_to_save_wrappers_are_taken_off(tmp_path):
    tensors = {
        **pair("q.base_layer", 3, 4),
        f"{WRAPPER}k.base_layer.bias": np.ones(4, np.float32),
        f"{WRAPPER}head.modules_to_save.weight": np.ones((2, 4), np.float32),
    }
    adapter = read(write_peft(tmp_path, tensors))
    assert [update.module for update in adapter.low_rank] == ["q"]
    assert {saved.parameter for saved in adapter.saved} == {"k.bias", "head.weight"}


def test_detection_reads_a_peft_folder(tmp_path):
    folder = write_peft(tmp_path, pair("q", 3, 4))
    assert read_adapter(folder, name="x", source="where").source == "where"
