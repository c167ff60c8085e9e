"""Families that are merged but not exported: their ties and names are as various as any."""

from __future__ import annotations

from typing import Any, Final

from tools.model_families import Family

__all__ = ["FURTHER"]

_TEXT: Final[dict[str, Any]] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FURTHER: Final = tuple(
    Family(name, config, {**_TEXT, **more}, ())
    for name, config, more in (
        ("OLMo", "OlmoConfig", {}),
        ("Cohere", "CohereConfig", {}),
        ("Nemotron", "NemotronConfig", {"num_key_value_heads": 2}),
        ("Persimmon", "PersimmonConfig", {}),
        ("BioGPT", "BioGptConfig", {}),
        ("RemBERT", "RemBertConfig", {"input_embedding_size": 16, "output_embedding_size": 16}),
        ("RoFormer", "RoFormerConfig", {"embedding_size": 32}),
        ("ConvBERT", "ConvBertConfig", {"embedding_size": 32}),
        (
            "Nystromformer",
            "NystromformerConfig",
            {"num_landmarks": 20, "segment_means_seq_len": 20},
        ),
        ("MegatronBERT", "MegatronBertConfig", {}),
        ("Ernie", "ErnieConfig", {}),
        ("Data2Vec, text", "Data2VecTextConfig", {"pad_token_id": 1}),
        ("FNet", "FNetConfig", {}),
        ("I-BERT", "IBertConfig", {"pad_token_id": 1}),
    )
)
