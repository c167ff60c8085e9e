"""Examples of the texts that users write or copy."""

from __future__ import annotations

from typing import Any, Final

__all__ = [
    "COMPANIONS",
    "CONFIG",
    "EXAMPLES",
    "MODULES",
    "PLAIN",
    "POOLING",
    "RECIPE",
    "SETTINGS",
    "TOKENIZER",
]

RECIPE: Final[dict[str, Any]] = {
    "base": "b", "task": "text-generation", "labels": ["x", "y"], "mode": "merged",
    "adapters": [{"name": "one", "source": "a", "scale": 1.0, "drop": ["x"], "alpha": 2.0}],
    "combine": {"method": "ties", "weights": [1.0], "density": 0.5, "seed": 0},
    "opset": 20, "cache": True, "targets": ["onnxruntime-cpu"],
    "profiles": [{"batch": 1, "length": [1, 2, 3]}],
    "verify": {"dataset": "d", "metric": "f1", "seed": 0},
    "latency": {"max_ratio": 1.1, "batch": 1, "length": 1, "rounds": 10},
    "bundle": {"enabled": True}, "triton": {"repository": "r", "versions": [1], "gpus": [0]},
    "output": "o",
}  # fmt: skip
PLAIN: Final = b"""base: the-base
adapters:
  - &one {name: one, source: ./a, drop: ["classifier.*"], labels: [x, y]}
  - {<<: *one, name: two}
verify: {dataset: data.jsonl, seed: 7}
output: out
"""

SETTINGS: Final[dict[str, Any]] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2,
    "lora_alpha": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {".*q.*": 3},
    "use_rslora": False, "use_dora": False, "lora_bias": False, "fan_in_fan_out": False,
    "init_lora_weights": True, "bias": "none", "target_modules": ["q_proj"],
    "exclude_modules": None, "target_parameters": None, "modules_to_save": ["head"],
    "layers_to_transform": [0], "layers_pattern": "layers", "trainable_token_indices": None,
    "revision": None, "auto_mapping": None,
}  # fmt: skip

CONFIG: Final[dict[str, Any]] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
    "vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": [2, 3], "bos_token_id": 1,
    "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32},
    "id2label": {"0": "a", "1": "b"}, "torch_dtype": "float32",
    "quantization_config": None,
    "text_config": {"model_type": "llama", "vocab_size": 10, "max_position_embeddings": 5},
}  # fmt: skip

TOKENIZER: Final[dict[str, Any]] = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
                "pad_id": 3, "pad_type_id": 0, "pad_token": "[PAD]"},
    "added_tokens": [{"id": 1, "content": "[UNK]", "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": True}],
    "normalizer": {"type": "Replace", "pattern": {"Regex": "c"}, "content": "a"},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "b"}, "behavior": "Isolated",
                      "invert": False},
    "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1, "b": 2}, "unk_token": "[UNK]"},
}  # fmt: skip

COMPANIONS: Final[dict[str, Any]] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "eos_token": "b", "pad_token": {"content": "a"}, "model_max_length": 10**30,
        "added_tokens_decoder": {"1": {"content": "[UNK]"}}, "chat_template": "{{ x }}",
    },
    "special_tokens_map.json": {"bos_token": "a"},
    "added_tokens.json": {"[X]": 5},
    "vocab.json": {"a": 0},
    "generation_config.json": {"eos_token_id": 2, "decoder_start_token_id": 1},
    "config.json": CONFIG,
}  # fmt: skip

MODULES: Final[list[dict[str, Any]]] = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize",
     "type": "sentence_transformers.models.Normalize"},
]  # fmt: skip
POOLING: Final[dict[str, Any]] = {
    "word_embedding_dimension": 4, "pooling_mode_mean_tokens": True, "pooling_mode": "mean",
    "include_prompt": True,
}  # fmt: skip

EXAMPLES: Final[list[dict[str, Any]]] = [
    {"text": "a b", "label": 0},
    {"tokens": ["a", "b"], "tags": [0, 1]},
    {"question": "a", "context": "b a", "answers": {"text": ["a"]}},
    {"prompt": "a \u00fc \U0001f600", "target": ["b"]},
]
"""Lines of data sets."""
