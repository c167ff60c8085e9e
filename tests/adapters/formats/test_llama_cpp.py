"""llama.cpp's adapters, written by the gguf package; q and k against the definition of rotary."""

from __future__ import annotations

import importlib.util
import re

import gguf
import numpy as np
import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError, MissingRuntimeError, UnsupportedError
from tests.helpers.formats import deltas, factors
from tests.helpers.rotary import scores

LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2}
NAMES = {
    "blk.7.attn_q": "model.layers.7.self_attn.q_proj",
    "blk.7.attn_k": "model.layers.7.self_attn.k_proj",
    "blk.7.attn_v": "model.layers.7.self_attn.v_proj",
    "blk.7.attn_output": "model.layers.7.self_attn.o_proj",
    "blk.7.ffn_gate": "model.layers.7.mlp.gate_proj",
    "blk.7.ffn_up": "model.layers.7.mlp.up_proj",
    "blk.7.ffn_down": "model.layers.7.mlp.down_proj",
    "output": "lm_head",
}
Q, K = "blk.7.attn_q", "blk.7.attn_k"


def pairs(**outputs):
    found = {}
    for seed, (name, rows) in enumerate((outputs or dict.fromkeys(NAMES, 24)).items()):
        a, b = factors(8, rows, seed=seed)
        found |= {f"{name}.weight.lora_a": a, f"{name}.weight.lora_b": b}
    return found


def write(path, tensors, *, architecture="llama", alpha=6.0, kind="lora", extra=None, dtype=None):
    """Write what convert_lora_to_gguf.py writes, with the gguf package's own writer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_array("general.tags", ["a", "b"])
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values if dtype is None else values.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path, base=LLAMA, **options):
    return read_adapter(path, name="x", source="here", base_config=base, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_names_scale_and_dtype(tmp_path, dtype):
    stored = pairs()
    path = write(tmp_path / "lora.gguf", stored, dtype=dtype)
    for place in (path, tmp_path):
        adapter = read(place)
        assert adapter.format == "gguf"
        assert adapter.tensor_count == len(stored)
        found = deltas(adapter)
        assert set(found) == set(NAMES.values())
        for theirs, ours in NAMES.items():
            if theirs not in (Q, K):
                b, a = (stored[f"{theirs}.weight.lora_{x}"].astype(dtype) for x in "ba")
                np.testing.assert_allclose(found[ours], 3 * (b.astype(float) @ a), rtol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "granite"])
@pytest.mark.parametrize("recorded", [False, True])
def test_attention_is_the_same_in_both_layouts(tmp_path, architecture, recorded):
    counts = {
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
    }
    stored = pairs(**{Q: 24, K: 12})
    path = write(
        tmp_path / "x.gguf",
        stored,
        architecture=architecture,
        alpha=2.0,
        extra=counts if recorded else None,
    )
    found = deltas(read(path, base=None if recorded else LLAMA))
    theirs = [
        stored[f"{each}.weight.lora_b"].astype(float) @ stored[f"{each}.weight.lora_a"]
        for each in (Q, K)
    ]
    x = np.random.default_rng(9).standard_normal((7, 8))
    heads = {"heads": 4, "kv_heads": 2}
    expected = scores(x, *theirs, neighbours=True, **heads)
    actual = scores(x, found[NAMES[Q]], found[NAMES[K]], neighbours=False, **heads)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    wrong = scores(x, *theirs, neighbours=False, **heads)
    assert np.abs(wrong - expected).max() > 0.1


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3", "phi3", "starcoder2"])
def test_other_architectures_keep_their_rows(tmp_path, architecture):
    name, module = {
        "phi3": ("blk.7.attn_qkv", "model.layers.7.self_attn.qkv_proj"),
        "starcoder2": ("blk.7.ffn_up", "model.layers.7.mlp.c_fc"),
    }.get(architecture, (Q, NAMES[Q]))
    stored = pairs(**{name: 24})
    path = write(tmp_path / "x.gguf", stored, architecture=architecture, alpha=2.0)
    b, a = (stored[f"{name}.weight.lora_{x}"].astype(float) for x in "ba")
    np.testing.assert_allclose(deltas(read(path, base=None))[module], b @ a, rtol=1e-12)


def test_an_embedding_is_stored_by_token(tmp_path):
    a, b = factors(9, 6)
    stored = {"token_embd.weight.lora_a": a.T, "token_embd.weight.lora_b": b}
    (update,) = read(write(tmp_path / "x.gguf", stored)).low_rank
    assert (update.module, update.embedding) == ("model.embed_tokens", True)
    assert (update.a.shape, update.b.shape) == ((2, 9), (6, 2))
    np.testing.assert_allclose(deltas(read(tmp_path))[update.module], 3.0 * (b @ a), rtol=1e-6)


def test_an_alpha_of_zero_means_a_scale_of_one(tmp_path):
    (update, *_) = read(write(tmp_path / "x.gguf", pairs(), alpha=0.0)).low_rank
    assert update.scale == 1.0


REFUSED = {
    "a kind": (pairs(), {"kind": "control"}, {}, AdapterError, "not a LoRA"),
    "architecture": (pairs(), {"architecture": "mamba"}, {}, UnsupportedError, "mamba"),
    "alpha": (pairs(), {"alpha": None}, {}, AdapterError, "alpha"),
    "infinite": (pairs(), {"alpha": np.inf}, {}, AdapterError, "finite"),
    "alora": (pairs(), {"extra": {"adapter.alora.invocation_tokens": 1}}, {}, UnsupportedError,
              "activated"),
    "heads": (pairs(), {}, {"base": None}, AdapterError, "--base"),
    "silent base": (pairs(), {}, {"base": {}}, AdapterError, "heads"),
    "other heads": (pairs(), {}, {"base": {"num_attention_heads": 5}}, AdapterError, "24 rows"),
    "norm": ({**pairs(), "blk.0.attn_norm.weight": np.ones(4, np.float32)}, {}, {},
             UnsupportedError, "attn_norm"),
    "experts": (pairs(**{"blk.0.ffn_gate_exps": 4}), {}, {}, UnsupportedError, "ffn_gate_exps"),
    "half": ({f"{Q}.weight.lora_a": np.ones((2, 4), np.float32)}, {}, {}, AdapterError, "only a"),
    "ranks": ({**pairs(), f"{Q}.weight.lora_a": np.ones((3, 8), np.float32)}, {}, {},
              AdapterError, "A has rank 3, B has 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path, case):
    stored, settings, options, kind, text = REFUSED[case]
    path = write(tmp_path / "x.gguf", stored, **settings)
    with pytest.raises(kind) as error:
        read(path, **options)
    assert re.search(text, str(error.value))
    assert error.value.hint


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.gguf", pairs())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRuntimeError, match="gguf package") as error:
        read(path)
    assert "pip install 'gguf>=0.17'" in str(error.value)
