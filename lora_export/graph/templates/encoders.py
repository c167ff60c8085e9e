"""The encoders of text that have templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.templates.family import NONE, NUMBER, TOKEN, Family

if TYPE_CHECKING:
    from lora_export.graph.templates.family import Kind

__all__ = ["ENCODERS"]

_BERT_SIZES: Final = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "labels": "num_labels",
}
_BERT_IRRELEVANT: Final[dict[str, Kind]] = {
    "hidden_dropout_prob": NUMBER,
    "attention_probs_dropout_prob": NUMBER,
    "classifier_dropout": (float, NONE),
}
_BERT_ABSENT: Final[dict[str, Any]] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_labels": 2,
    "layer_norm_eps": 1e-12,
}
_BERT_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True,),
}

ENCODERS: Final[tuple[Family, ...]] = (
    Family(
        "bert",
        sizes={**_BERT_SIZES, "types": "type_vocab_size"},
        floats={"eps": "layer_norm_eps"},
        choices=_BERT_CHOICES,
        absent={**_BERT_ABSENT, "type_vocab_size": 2},
        irrelevant={**_BERT_IRRELEVANT, "pad_token_id": TOKEN},
        conditions=("hidden/heads",),
        depths={"bert.encoder.layer": "layers"},
    ),
    *(
        Family(
            name,
            sizes=_BERT_SIZES,
            floats={"eps": "layer_norm_eps"},
            choices={**_BERT_CHOICES, "type_vocab_size": (1,), "pad_token_id": (1,)},
            absent={**_BERT_ABSENT, **own},
            irrelevant=_BERT_IRRELEVANT,
            conditions=("hidden/heads",),
            depths={"roberta.encoder.layer": "layers"},
        )
        for name, own in (
            ("roberta", {"vocab_size": 50265, "type_vocab_size": 2, "pad_token_id": 1}),
            ("xlm-roberta", {"type_vocab_size": 2, "pad_token_id": 1}),
        )
    ),
    Family(
        "distilbert",
        sizes={
            "vocab": "vocab_size",
            "hidden": "dim",
            "layers": "n_layers",
            "heads": "n_heads",
            "intermediate": "hidden_dim",
            "positions": "max_position_embeddings",
            "labels": "num_labels",
        },
        choices={
            "activation": ("gelu",),
            "sinusoidal_pos_embds": (False,),
            "tie_word_embeddings": (True,),
        },
        absent={
            "vocab_size": 30522,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "max_position_embeddings": 512,
            "num_labels": 2,
        },
        irrelevant={
            "dropout": NUMBER,
            "attention_dropout": NUMBER,
            "qa_dropout": NUMBER,
            "seq_classif_dropout": NUMBER,
            "pad_token_id": TOKEN,
            "output_past": (bool,),
        },
        spellings={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
        },
        conditions=("hidden/heads",),
        depths={"distilbert.transformer.layer": "layers"},
    ),
)
