"""The decoders that have templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.templates.family import NONE, NUMBER, TOKEN, Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.templates.family import Kind

__all__ = ["DECODERS"]

_LLAMA_SIZES: Final = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
}
_LLAMA_IRRELEVANT: Final[dict[str, Kind]] = {
    "max_position_embeddings": (int,),
    "attention_dropout": NUMBER,
    "pad_token_id": TOKEN,
    "num_labels": (int,),
}
_LAYERS: Final = {"model.layers": "layers"}


def _decoder(
    model_type: str,
    absent: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, ...]],
    *,
    irrelevant: Mapping[str, Kind] | None = None,
    nullable: frozenset[str] = frozenset(),
    conditions: tuple[str, ...] = (),
    rope_types: tuple[str, ...] = ("default", "llama3"),
    window: str | None = None,
) -> Family:
    """Return a decoder like Llama."""
    return Family(
        model_type,
        sizes=_LLAMA_SIZES,
        floats={"eps": "rms_norm_eps"},
        choices={"hidden_act": ("silu",), **choices},
        absent={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, **absent},
        nullable=nullable,
        irrelevant={**_LLAMA_IRRELEVANT, **(irrelevant or {})},
        conditions=("hidden/heads", "heads/kv_heads", "head_dim/2", *conditions),
        layer_types="use_sliding_window" in choices,
        rotary=True,
        rope_types=rope_types,
        window=window,
        depths=_LAYERS,
    )


DECODERS: Final[tuple[Family, ...]] = (
    Family(
        "gpt2",
        sizes={
            "vocab": "vocab_size",
            "hidden": "n_embd",
            "layers": "n_layer",
            "heads": "n_head",
            "positions": "n_positions",
            "intermediate": "n_inner",
            "labels": "num_labels",
        },
        floats={"eps": "layer_norm_epsilon"},
        choices={
            "activation_function": ("gelu_new",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "tie_word_embeddings": (True,),
        },
        absent={
            "vocab_size": 50257,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "n_inner": "=4*hidden",
            "num_labels": 2,
            "layer_norm_epsilon": 1e-5,
        },
        nullable=frozenset({"n_inner"}),
        irrelevant={
            "n_ctx": (int,),
            "resid_pdrop": NUMBER,
            "embd_pdrop": NUMBER,
            "attn_pdrop": NUMBER,
            "summary_type": (str,),
            "summary_use_proj": (bool,),
            "summary_activation": (str, NONE),
            "summary_proj_to_labels": (bool,),
            "summary_first_dropout": NUMBER,
            "pad_token_id": TOKEN,
        },
        spellings={
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "max_position_embeddings": "n_positions",
        },
        conditions=("hidden/heads",),
        depths={"transformer.h": "layers"},
    ),
    _decoder(
        "llama",
        absent={
            "vocab_size": 32000,
            "num_key_value_heads": "=heads",
            "head_dim": "=hidden/heads",
            "tie_word_embeddings": False,
        },
        choices={
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "tie_word_embeddings": (False, True),
            "rope_interleaved": (False,),
        },
        irrelevant={
            "pretraining_tp": (int,),
            "is_llama_config": (bool,),
            "transformers.js_config": (dict,),
        },
        nullable=frozenset({"num_key_value_heads", "head_dim"}),
    ),
    _decoder(
        "qwen2",
        absent={"head_dim": "=hidden/heads", "tie_word_embeddings": False},
        choices={
            "use_sliding_window": (False,),
            "use_mrope": (False,),
            "tie_word_embeddings": (False, True),
        },
        irrelevant={"sliding_window": (int, NONE), "max_window_layers": (int,)},
        conditions=("hidden=heads*head_dim",),
    ),
    _decoder(
        "qwen3",
        absent={"head_dim": 128, "tie_word_embeddings": False},
        choices={
            "attention_bias": (False,),
            "use_sliding_window": (False,),
            "tie_word_embeddings": (False, True),
        },
        irrelevant={"sliding_window": (int, NONE), "max_window_layers": (int,)},
    ),
    _decoder(
        "mistral",
        absent={
            "head_dim": "=hidden/heads",
            "tie_word_embeddings": False,
            "sliding_window": 4096,
        },
        choices={"tie_word_embeddings": (False,)},
        nullable=frozenset({"head_dim"}),
        window="sliding_window",
    ),
    _decoder(
        "gemma",
        absent={
            "vocab_size": 256000,
            "head_dim": 256,
            "tie_word_embeddings": True,
        },
        choices={
            "hidden_act": ("gelu_pytorch_tanh", "gelu"),
            "attention_bias": (False,),
            "use_bidirectional_attention": (None, False),
            "tie_word_embeddings": (True,),
        },
        irrelevant={"hidden_activation": (str, NONE)},
    ),
    _decoder(
        "phi3",
        absent={
            "vocab_size": 32064,
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": "=heads",
            "head_dim": "=hidden/heads",
            "tie_word_embeddings": False,
            "pad_token_id": 32000,
        },
        choices={
            "attention_bias": (False,),
            "partial_rotary_factor": (1.0,),
            "tie_word_embeddings": (False,),
        },
        irrelevant={
            "original_max_position_embeddings": (int,),
            "resid_pdrop": NUMBER,
            "embd_pdrop": NUMBER,
        },
        nullable=frozenset({"num_key_value_heads"}),
        conditions=("hidden=heads*head_dim",),
        rope_types=("default",),
        window="sliding_window",
    ),
)
