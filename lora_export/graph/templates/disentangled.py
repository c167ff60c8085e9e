"""DeBERTa-v2's templates: those of DeBERTa v3, whose positions are relative and in buckets."""

from __future__ import annotations

from typing import Final

from lora_export.graph.templates.family import NONE, NUMBER, TOKEN, Family

__all__ = ["DISENTANGLED"]

DISENTANGLED: Final[tuple[Family, ...]] = (
    Family(
        "deberta-v2",
        sizes={
            "vocab": "vocab_size",
            "hidden": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "intermediate": "intermediate_size",
            "labels": "num_labels",
            "pooler_hidden": "pooler_hidden_size",
        },
        floats={"eps": "layer_norm_eps"},
        choices={
            "hidden_act": ("gelu",),
            "relative_attention": (True,),
            "position_buckets": (256,),
            "max_position_embeddings": (512,),
            "max_relative_positions": (-1,),
            "norm_rel_ebd": ("layer_norm",),
            "share_att_key": (True,),
            "pos_att_type": (["p2c", "c2p"], ["c2p", "p2c"], "c2p|p2c", "p2c|c2p"),
            "position_biased_input": (False,),
            "type_vocab_size": (0,),
            "conv_kernel_size": (0,),
            "pooler_hidden_act": ("gelu",),
            "legacy": (True,),
            "tie_word_embeddings": (True,),
        },
        absent={
            "vocab_size": 128100,
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "num_labels": 2,
            "layer_norm_eps": 1e-7,
            "pooler_hidden_size": "=hidden",
            "relative_attention": False,
            "position_buckets": -1,
            "norm_rel_ebd": "none",
            "share_att_key": False,
            "pos_att_type": None,
            "position_biased_input": True,
        },
        irrelevant={
            "hidden_dropout_prob": NUMBER,
            "attention_probs_dropout_prob": NUMBER,
            "pooler_dropout": NUMBER,
            "cls_dropout": (float, int, NONE),
            "pad_token_id": TOKEN,
        },
        conditions=("hidden/heads", "pooler_hidden=hidden"),
        depths={"deberta.encoder.layer": "layers"},
    ),
)
