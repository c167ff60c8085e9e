"""Configs that have a template, and those that must not have one."""

from __future__ import annotations

from typing import Any

import pytest

from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError, match

GPT2 = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_head": 4, "n_layer": 6,
        "n_positions": 64}  # fmt: skip
BERT = {"model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4,
        "num_hidden_layers": 6, "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip
ROBERTA = {**BERT, "model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1}
LLAMA = {"model_type": "llama", "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 2, "num_hidden_layers": 6, "intermediate_size": 64}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2"}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": None}
GEMMA = {**LLAMA, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16}
PHI3 = {**LLAMA, "model_type": "phi3", "sliding_window": None, "pad_token_id": 0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


def matched(config: dict[str, Any]) -> Any:
    return match(FAMILIES[config["model_type"]], config)


@pytest.mark.parametrize("config", [GPT2, BERT, ROBERTA, LLAMA, QWEN2, MISTRAL, GEMMA, PHI3])
def test_plain_configs_match(config: dict[str, Any]) -> None:
    assert matched(config).sizes["hidden"] == 32


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}),
        (GPT2, {"reorder_and_upcast_attn": True}),
        (GPT2, {"scale_attn_weights": False}),
        (GPT2, {"activation_function": "gelu"}),
        (GPT2, {"add_cross_attention": True}),
        (GPT2, {"n_embd": 33}),
        (GPT2, {"hidden_size": 32}),
        (GPT2, {"n_embd": "32"}),
        (GPT2, {"n_embd": 32.0}),
        (GPT2, {"n_embd": True}),
        (GPT2, {"layer_norm_epsilon": 0}),
        (GPT2, {"layer_norm_epsilon": float("nan")}),
        (GPT2, {"tie_word_embeddings": False}),
        (GPT2, {"an_invented_key": 1}),
        (GPT2, {"an_invented_key": None}),
        (GPT2, {"resid_pdrop": "a lot"}),
        (BERT, {"position_embedding_type": "relative_key"}),
        (BERT, {"problem_type": "an_invented_one"}),
        (BERT, {"is_decoder": True}),
        (BERT, {"is_decoder": 0}),
        (BERT, {"chunk_size_feed_forward": 2}),
        (BERT, {"hidden_act": "gelu_new"}),
        (BERT, {"pruned_heads": {"1": [0]}}),
        (BERT, {"output_attentions": True}),
        (BERT, {"num_attention_heads": 5}),
        (BERT, {"type_vocab_size": 1}),
        (BERT, {"pad_token_id": 100}),
        (BERT, {"pad_token_id": -1}),
        (BERT, {"hidden_size": None}),
        (ROBERTA, {"pad_token_id": 0}),
        (ROBERTA, {"pad_token_id": None}),
        (ROBERTA, {"type_vocab_size": 2}),
        (LLAMA, {"num_key_value_heads": 3}),
        (LLAMA, {"num_key_value_heads": 8}),
        (LLAMA, {"num_key_value_heads": 0}),
        (LLAMA, {"rope_interleaved": True}),
        (LLAMA, {"head_dim": 7}),
        (LLAMA, {"attention_bias": True}),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (LLAMA, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        (LLAMA, {"rope_scaling": {"rope_type": "an_unknown_type"}}),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "truncate": True}}),
        (LLAMA, {"rope_scaling": "llama3"}),
        (LLAMA, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}),
        (LLAMA, {"rope_theta": "10000"}),
        (LLAMA, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        (LLAMA, {"partial_rotary_factor": 0.5}),
        (QWEN2, {"head_dim": 16}),
        (QWEN2, {"use_mrope": True}),
        (QWEN2, {"use_sliding_window": True}),
        (QWEN2, {"layer_types": ["full_attention"] * 5 + ["sliding_attention"]}),
        (QWEN2, {"layer_types": ["full_attention"] * 5}),
        (MISTRAL, {"sliding_window": "4096"}),
        (MISTRAL, {"sliding_window": 0}),
        (GEMMA, {"hidden_act": "silu"}),
        (GEMMA, {"use_bidirectional_attention": True}),
        (GEMMA, {"tie_word_embeddings": False}),
        (GEMMA, {"final_logit_softcapping": 30.0}),
        (PHI3, {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}),
        (
            PHI3,
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                }
            },
        ),
        (PHI3, {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}),
        (PHI3, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}}),
        (PHI3, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        (PHI3, {"partial_rotary_factor": 0.75}),
        (PHI3, {"head_dim": 16}),
    ],
)
def test_other_configs_do_not(config: dict[str, Any], changed: dict[str, Any]) -> None:
    with pytest.raises(NoTemplateError):
        matched({**config, **changed})


@pytest.mark.parametrize("kind", [None, "regression", "single_label_classification"])
def test_a_fine_tuned_classifier_matches(kind: str | None) -> None:
    assert matched({**BERT, "problem_type": kind}) == matched(BERT)


def test_an_absent_key_means_what_transformers_takes_it_for() -> None:
    without = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert matched(without).sizes["window"] == 4096
    assert matched(GPT2).sizes["intermediate"] == 128
    assert matched({**GPT2, "n_inner": None}).sizes["intermediate"] == 128
    assert matched({**LLAMA, "head_dim": None}).sizes["head_dim"] == 8


def test_spellings_mean_the_same() -> None:
    other = {key: value for key, value in GPT2.items() if key != "n_embd"} | {"hidden_size": 32}
    assert matched(other) == matched(GPT2)
    old = {**LLAMA, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    new = {**LLAMA, "rope_parameters": {"rope_theta": 500000, "rope_type": "llama3", **LLAMA3}}
    assert matched(old) == matched(new)
    assert matched(LLAMA).rope == "default:10000.0"


def test_heads_of_keys_and_windows_are_choices() -> None:
    heads = {count: matched({**LLAMA, "num_key_value_heads": count}) for count in (4, 2, 1)}
    assert {count: each.choices["grouped"] for count, each in heads.items()} == {
        4: False, 2: True, 1: "one",
    }  # fmt: skip
    assert matched(MISTRAL).choices["windowed"] is False
    windowed = matched({**MISTRAL, "sliding_window": 7})
    assert (windowed.choices["windowed"], windowed.sizes["window"]) == (True, 7)


def test_configs_as_they_are_on_the_hub_match() -> None:
    smollm2 = {**LLAMA, "rope_theta": 100000, "rope_scaling": None, "rope_interleaved": False,
               "is_llama_config": True, "transformers.js_config": {"dtype": "q4"},
               "initializer_range": 0.041666666666666664, "pretraining_tp": 1}  # fmt: skip
    assert matched(smollm2).rope == "default:100000.0"
    llama32 = {**LLAMA, "head_dim": 8, "rope_theta": 500000.0, "eos_token_id": [1, 8],
               "rope_scaling": {**LLAMA3, "factor": 32.0, "rope_type": "llama3"}}  # fmt: skip
    assert matched(llama32).rope == "llama3:500000.0:32.0:1.0:4.0:8192.0"
    qwen25 = {**QWEN2, "use_mrope": False, "use_sliding_window": False, "sliding_window": 32768,
              "max_window_layers": 24, "rope_theta": 1000000.0}  # fmt: skip
    assert matched(qwen25).rope == "default:1000000.0"
    phi3 = {**PHI3, "sliding_window": 2047, "original_max_position_embeddings": 4096,
            "attention_bias": False, "rope_scaling": None, "resid_pdrop": 0.0}  # fmt: skip
    assert matched(phi3).choices["windowed"] is True
