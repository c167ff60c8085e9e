"""torchtune's names, and q and k against rotary attention written from its definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.tensors import read_all
from tests.helpers.formats import deltas, factors, write_tensors
from tests.helpers.rotary import reordered, scores

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
NAMES = {
    "layers.5.attn.q_proj": "model.layers.5.self_attn.q_proj",
    "layers.5.attn.k_proj": "model.layers.5.self_attn.k_proj",
    "layers.5.attn.v_proj": "model.layers.5.self_attn.v_proj",
    "layers.5.attn.output_proj": "model.layers.5.self_attn.o_proj",
    "layers.5.mlp.w1": "model.layers.5.mlp.gate_proj",
    "layers.5.mlp.w2": "model.layers.5.mlp.down_proj",
    "layers.5.mlp.w3": "model.layers.5.mlp.up_proj",
    "output": "lm_head",
}
Q, K = "layers.5.attn.q_proj", "layers.5.attn.k_proj"


def tensors(**outputs):
    found = {}
    for seed, (module, rows) in enumerate((outputs or dict.fromkeys(NAMES, 24)).items()):
        a, b = factors(8, rows, seed=seed)
        found |= {f"{module}.lora_a.weight": a, f"{module}.lora_b.weight": b}
    return found


def read(tmp_path, stored, config=None, base=LLAMA, **options):
    write_tensors(tmp_path / "adapter_model.safetensors", stored, config)
    path = tmp_path if config is None else tmp_path / "adapter_0.pt"
    if config is not None:
        torch.save({k: torch.from_numpy(np.array(v)) for k, v in stored.items()}, path)
    return read_adapter(path, name="x", source="here", base_config=base, **options)


def test_names_and_scales(tmp_path):
    stored = tensors()
    adapter = read(tmp_path, stored, {"r": 2, "lora_alpha": 6, "peft_type": "LORA"})
    assert adapter.format == "torchtune"
    assert adapter.tensor_count == len(stored)
    found = deltas(adapter)
    assert set(found) == set(NAMES.values())
    for theirs, ours in NAMES.items():
        if theirs not in (Q, K):
            b, a = (stored[f"{theirs}.lora_{x}.weight"].astype(float) for x in "ba")
            np.testing.assert_allclose(found[ours], 3 * b @ a, rtol=1e-12)
    again = deltas(read(tmp_path, stored, alpha=6))
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma", "gemma2"])
def test_attention_is_the_same_in_both_layouts(tmp_path, kind):
    stored = tensors(**{Q: 24, K: 12})
    found = deltas(read(tmp_path, stored, alpha=2, base={**LLAMA, "model_type": kind}))
    theirs = [
        stored[f"{each}.lora_b.weight"].astype(float) @ stored[f"{each}.lora_a.weight"]
        for each in (Q, K)
    ]
    x = np.random.default_rng(9).standard_normal((7, 8))
    heads = {"heads": 4, "kv_heads": 2}
    expected = scores(x, *theirs, neighbours=True, **heads)
    actual = scores(x, found[NAMES[Q]], found[NAMES[K]], neighbours=False, **heads)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    wrong = scores(x, *theirs, neighbours=False, **heads)
    assert np.abs(wrong - expected).max() > 0.1


def test_a_base_that_torchtune_does_not_reorder(tmp_path):
    stored = tensors(**{Q: 24})
    found = deltas(read(tmp_path, stored, alpha=2, base={**LLAMA, "model_type": "qwen2"}))
    b, a = (stored[f"{Q}.lora_{x}.weight"].astype(float) for x in "ba")
    np.testing.assert_allclose(found[NAMES[Q]], b @ a, rtol=1e-12)


def test_a_magnitude_is_reordered_with_its_rows(tmp_path):
    magnitude = np.arange(1, 25, dtype=np.float32)
    stored = {**tensors(**{Q: 24}), f"{Q}.magnitude": reordered(magnitude, 4)}
    (update,) = read(tmp_path, stored, alpha=1).low_rank
    np.testing.assert_array_equal(read_all(update.magnitude), magnitude)


def test_the_base_is_asked_for_only_where_it_is_needed(tmp_path):
    read(tmp_path, tensors(**{"layers.0.mlp.w1": 6}), alpha=1, base=None)
    with pytest.raises(AdapterError, match="--base"):
        read(tmp_path, tensors(**{Q: 24}), alpha=1, base=None)


REFUSED = {
    "alpha": (tensors(), {}, AdapterError, "records no alpha"),
    "heads": (tensors(**{Q: 26}), {"alpha": 1}, AdapterError, "26 rows"),
    "no heads": (tensors(), {"alpha": 1, "base": {"model_type": "llama"}}, AdapterError, "heads"),
    "base": (tensors(), {"alpha": 1, "base": {"model_type": "phi3"}}, UnsupportedError, "phi3"),
    "odd base": (tensors(), {"alpha": 1, "base": {"model_type": []}}, UnsupportedError, "type"),
    "module": (tensors(**{"decoder.layers.0.attn.q_proj": 6}), {"alpha": 1}, UnsupportedError,
               "decoder"),
    "other": ({**tensors(), "norm.scale": np.ones(3)}, {"alpha": 1}, UnsupportedError, "norm"),
    "magnitude": ({**tensors(), f"{Q}.magnitude": np.ones(3)}, {"alpha": 1}, AdapterError, "24"),
    "enable": (tensors(), {"alpha": 1, "enable_lora": [True]}, UsageError, "--enable-lora"),
    "contradiction": (tensors(), {"alpha": 1, "config": {"lora_alpha": 2}}, AdapterError, "not 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path, case):
    stored, options, kind, text = REFUSED[case]
    with pytest.raises(kind) as error:
        read(tmp_path, stored, **options)
    assert re.search(text, str(error.value))
    assert error.value.hint


ROWS = {
    # B of q (two heads of 8) and k (one) after ``tune_to_peft_adapter_weights`` of torchtune 0.6.1,
    # which puts these families' rows in Hugging Face's order; row i held the number i before.
    Q: [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15],
    K: [0, 2, 4, 6, 1, 3, 5, 7],
}


@pytest.mark.parametrize(
    ("kind", "reordered"),
    # Its checkpointer's choice: hf_to_tune and gemma2_hf_to_tune permute, qwen2_ and qwen3_ do not.
    [("llama", True), ("mistral", True), ("gemma", True), ("gemma2", True), ("qwen2", False),
     ("qwen3", False)],
)  # fmt: skip
def test_rows_are_those_of_torchtunes_own_conversion(tmp_path, kind, reordered):
    config = {"model_type": kind, "num_attention_heads": 2, "num_key_value_heads": 1}
    stored = {}
    for module, rows in ROWS.items():
        stored |= {
            f"{module}.lora_a.weight": np.ones((1, 16), np.float32),
            f"{module}.lora_b.weight": np.arange(len(rows), dtype=np.float32)[:, None],
        }
    adapter = read(tmp_path, stored, alpha=1, base=config)
    found = {update.module: read_all(update.b)[:, 0].tolist() for update in adapter.low_rank}
    for module, rows in ROWS.items():
        assert found[NAMES[module]] == (rows if reordered else list(range(len(rows))))


def test_phi3_whose_q_k_and_v_are_one_matrix_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="'phi3'"):
        read(tmp_path, tensors(**{Q: 24}), alpha=1, base={**LLAMA, "model_type": "phi3"})


def test_a_file_that_holds_more_than_tensors_is_named(tmp_path):
    tensors = {"layers.0.attn.q_proj.lora_a.weight": torch.zeros(2, 3), "epoch": 3}
    torch.save(tensors, tmp_path / "adapter_0.pt")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    with pytest.raises(AdapterError, match=r"'epoch' in '.*adapter_0\.pt' is a int, not a tensor"):
        read_adapter(tmp_path, name="x", source="here")
