"""Bases in GGUF: models of every architecture that is read, against what they were written from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from lora_export.core.tensors import bytes_of, nbytes, read_all
from lora_export.weights.checkpoint import open_checkpoint, read_config
from lora_export.weights.gguf.architectures import ARCHITECTURES
from tests.helpers.gguf_bases import save_gguf

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8}
SETTINGS = {
    "llama": {"head_dim": 32, "rope_theta": 5e5},
    "granite": {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5,
                "attention_multiplier": 0.25},
    "smollm3": {"num_hidden_layers": 5},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 128},
    "olmo2": {},
    "phi3": {},
    "starcoder2": {},
    "gemma": {"head_dim": 32},
    "gemma2": GEMMA,
    "gemma3": {**GEMMA, "num_hidden_layers": 7},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
}  # fmt: skip
BY_TRANSFORMERS = ("llama", "qwen2", "qwen3", "starcoder2", "gemma2", "gemma3", "gpt2")


def model_of(architecture, **changes):
    """Return a random model of an architecture, and its tensors."""
    row = ARCHITECTURES[architecture]
    sizes = {"vocab_size": 96} if architecture == "gpt2" else SIZES
    settings = {**sizes, **SETTINGS[architecture], **changes}
    config = transformers.AutoConfig.for_model(row.model_types[0], **settings)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tied = config.tie_word_embeddings
    held = {
        k: v.numpy() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")
    }
    return model, held


def loaded(config, values):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config)
    ).eval()
    given = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in values.items()}
    lacking, extra = model.load_state_dict(given, strict=False)
    assert not extra
    assert set(lacking) <= {"lm_head.weight"}
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits.numpy()


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_names_values_and_config_are_those_of_the_model(architecture, tmp_path):
    model, held = model_of(architecture)
    path = tmp_path / "model.gguf"
    expected = save_gguf(path, architecture, model.config.to_dict(), held, kind=lambda _: "Q8_0")
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == set(held)
    found = {name: read_all(tensor) for name, tensor in checkpoint.tensors.items()}
    for name, values in found.items():
        assert np.array_equal(values, expected[name]), name
    original = loaded(model.config.to_dict(), expected)
    assert np.array_equal(logits(loaded(dict(checkpoint.config), found)), logits(original))
    assert read_config(path) == checkpoint.config
    assert checkpoint.stored_form.schemes == ["q8_0"]


@pytest.mark.parametrize("architecture", BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(architecture, tmp_path):
    model, held = model_of(architecture)
    path = tmp_path / "model.gguf"
    kinds = {
        "blk.0.attn_q.weight": "F16",
        "blk.0.attn_k.weight": "Q5_0",
        "blk.0.ffn_up.weight": "BF16",
    }
    save_gguf(
        path, architecture, model.config.to_dict(), held, kind=lambda name: kinds.get(name, "Q4_0")
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    checkpoint = open_checkpoint(tmp_path)
    found = {name: read_all(tensor) for name, tensor in checkpoint.tensors.items()}
    state = theirs.state_dict()
    for name, values in found.items():
        assert np.array_equal(values, state[name].numpy()), name
    assert np.array_equal(logits(loaded(dict(checkpoint.config), found)), logits(theirs))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "qwen2"])
def test_any_part_is_that_part_of_the_whole(architecture, tmp_path):
    model, held = model_of(architecture)
    path = tmp_path / "model.gguf"
    save_gguf(path, architecture, model.config.to_dict(), held, kind=lambda _: "Q4_0")
    for name, tensor in open_checkpoint(path).tensors.items():
        whole = read_all(tensor)
        raw, total = whole.tobytes(), nbytes(tensor)
        for start, stop in ((0, 4), (3, 90), (total // 3, total - 1), (total - 5, total)):
            buffer = np.empty(stop - start, np.uint8)
            tensor.read_into(bytes_of(buffer), start)
            assert buffer.tobytes() == raw[start:stop], name
        width = whole.shape[-1]
        if whole.ndim == 2:
            assert np.array_equal(tensor.read_columns(5, width - 3), whole[:, 5 : width - 3]), name


def test_a_bias_of_q_and_k_is_reordered_like_the_weight(tmp_path):
    model, held = model_of("llama", attention_bias=True, mlp_bias=True)
    path = tmp_path / "model.gguf"
    save_gguf(path, "llama", model.config.to_dict(), held)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.config["attention_bias"], checkpoint.config["mlp_bias"]) == (True, True)
    assert checkpoint.stored_form is None
    for name, values in held.items():
        assert np.array_equal(read_all(checkpoint.tensors[name]), values), name


def test_the_config_beside_the_file_is_taken_and_its_dtype(tmp_path):
    model, held = model_of("llama")
    path = tmp_path / "model.gguf"
    values = save_gguf(path, "llama", model.config.to_dict(), held, kind=lambda _: "Q4_0")
    config = {
        **model.config.to_dict(),
        "model_type": "mistral",
        "sliding_window": 7,
        "dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["sliding_window"] == 7
    assert [each.name for each in checkpoint.companions] == ["config.json"]
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(read_all(tensor), values[name].astype(np.float16)), name
