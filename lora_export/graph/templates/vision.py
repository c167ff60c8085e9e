"""The encoders of images that have templates."""

from __future__ import annotations

from typing import Final

from lora_export.graph.templates.family import NUMBER, TOKEN, Family

__all__ = ["VISION"]

VISION: Final[tuple[Family, ...]] = (
    Family(
        "vit",
        sizes={
            "hidden": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "intermediate": "intermediate_size",
            "image": "image_size",
            "patch": "patch_size",
            "channels": "num_channels",
            "labels": "num_labels",
        },
        derived={"grid": "image/patch"},
        floats={"eps": "layer_norm_eps"},
        choices={"hidden_act": ("gelu",), "qkv_bias": (True,), "pooler_act": ("tanh",)},
        absent={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "image_size": 224,
            "patch_size": 16,
            "num_channels": 3,
            "num_labels": 2,
            "layer_norm_eps": 1e-12,
        },
        irrelevant={
            "hidden_dropout_prob": NUMBER,
            "attention_probs_dropout_prob": NUMBER,
            "encoder_stride": (int,),
            "pooler_output_size": TOKEN,
        },
        conditions=("hidden/heads",),
        depths={"vit.layers": "layers"},
    ),
)
