"""Make a checkpoint of a published architecture with seeded random weights, by transformers.

Usage: python _random_model.py {bert-base,minilm,roberta-base,gpt2,llama-110m} FOLDER
"""

from __future__ import annotations

import sys

import torch
import transformers


def make(kind: str) -> transformers.PreTrainedModel:
    """Return the model called `kind`, float32."""
    if kind == "bert-base":
        labels = transformers.BertConfig(num_labels=3)
        return transformers.BertForSequenceClassification(labels)
    if kind == "minilm":
        config = transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12,
            max_position_embeddings=512, num_labels=3,
        )  # fmt: skip
        return transformers.BertForSequenceClassification(config)
    if kind == "roberta-base":
        config = transformers.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=3,
        )  # fmt: skip
        return transformers.RobertaForSequenceClassification(config)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(pad_token_id=0))
    assert kind == "llama-110m", kind
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=2048,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def main() -> None:
    kind, folder = sys.argv[1:]
    torch.manual_seed(0)
    make(kind).save_pretrained(folder)


if __name__ == "__main__":
    main()
