"""The architectures that have templates: what each key of their configs means for the graph.

A key of a config *enters* (it is a size, a number or a choice), or is *irrelevant*; a config that
has another key has no template. `tools.templates` holds both true: templates are confirmed by a
trace with other sizes and with every irrelevant key changed, and what an absent key means is
compared with transformers' own config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAMILIES", "Family", "Kind"]

Kind = tuple[type, ...]
"""The JSON types of the values that an irrelevant key may have."""

_NUMBER: Final[Kind] = (int, float)
_NONE: Final = type(None)
_TOKEN: Final[Kind] = (int, _NONE)
_TOKENS: Final[Kind] = (int, list, _NONE)

_ALWAYS: Final[dict[str, tuple[Any, ...]]] = {
    "output_hidden_states": (False,),
    "output_attentions": (False,),
    "return_dict": (True,),
    "torchscript": (False,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({},),
}
"""Choices of every config, with the values that templates are for; absent means the first."""

_ANY_CONFIG: Final[dict[str, Kind]] = {
    "use_cache": (bool,),
    "initializer_range": (float,),
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "sep_token_id": _TOKEN,
    "decoder_start_token_id": _TOKEN,
    "problem_type": (_NONE,),
    "use_bfloat16": (bool,),
    "tokenizer_class": (str, _NONE),
    "_attn_implementation_autoset": (bool,),
}
"""Keys of every config that say nothing of the graph."""


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        model_type: ``model_type`` in a config.
        sizes: Sizes by their names in formulas, each with its key in a config.
        floats: Settings that are floats, in the same way.
        choices: Keys that are compared, each with the values that templates are made for.
        absent: What an absent key means, as transformers has it; a text that begins with ``=`` is
            a formula. A key that is in neither has to be there.
        nullable: Keys for which null is the same as absence.
        irrelevant: Keys that do not enter, with the types of their values.
        spellings: Other names of keys.
        conditions: Quotients that have to be exact, as transformers demands, and equal formulas.
        rotary: Whether it has rotary positions, of which the frequencies are tables.
        layer_types: Whether a list may say that every layer has full attention.
        depths: The sizes that count layers, by the path of the list of layers.
    """

    model_type: str
    sizes: Mapping[str, str]
    depths: Mapping[str, str]
    floats: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    nullable: frozenset[str] = frozenset()
    irrelevant: Mapping[str, Kind] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    rotary: bool = False
    layer_types: bool = False

    @property
    def all_choices(self) -> dict[str, tuple[Any, ...]]:
        """The keys that are compared, those of every config too."""
        return {**_ALWAYS, **self.choices}

    @property
    def all_irrelevant(self) -> dict[str, Kind]:
        """The keys that do not enter, those of every config too."""
        return {**_ANY_CONFIG, **self.irrelevant}


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
    "hidden_dropout_prob": _NUMBER,
    "attention_probs_dropout_prob": _NUMBER,
    "classifier_dropout": (float, _NONE),
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
    "attention_dropout": _NUMBER,
    "pad_token_id": _TOKEN,
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
        depths=_LAYERS,
    )


FAMILIES: Final[dict[str, Family]] = {
    row.model_type: row
    for row in (
        Family(
            "bert",
            sizes={**_BERT_SIZES, "types": "type_vocab_size"},
            floats={"eps": "layer_norm_eps"},
            choices=_BERT_CHOICES,
            absent={**_BERT_ABSENT, "type_vocab_size": 2},
            irrelevant={**_BERT_IRRELEVANT, "pad_token_id": _TOKEN},
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
                "dropout": _NUMBER,
                "attention_dropout": _NUMBER,
                "qa_dropout": _NUMBER,
                "seq_classif_dropout": _NUMBER,
                "pad_token_id": _TOKEN,
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
                "resid_pdrop": _NUMBER,
                "embd_pdrop": _NUMBER,
                "attn_pdrop": _NUMBER,
                "summary_type": (str,),
                "summary_use_proj": (bool,),
                "summary_activation": (str, _NONE),
                "summary_proj_to_labels": (bool,),
                "summary_first_dropout": _NUMBER,
                "pad_token_id": _TOKEN,
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
            },
            irrelevant={"pretraining_tp": (int,)},
            nullable=frozenset({"num_key_value_heads", "head_dim"}),
        ),
        _decoder(
            "qwen2",
            absent={"head_dim": "=hidden/heads", "tie_word_embeddings": False},
            choices={"use_sliding_window": (False,), "tie_word_embeddings": (False, True)},
            irrelevant={"sliding_window": (int, _NONE), "max_window_layers": (int,)},
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
            irrelevant={"sliding_window": (int, _NONE), "max_window_layers": (int,)},
        ),
        _decoder(
            "mistral",
            absent={
                "head_dim": "=hidden/heads",
                "tie_word_embeddings": False,
                "sliding_window": 4096,
            },
            choices={"sliding_window": (None,), "tie_word_embeddings": (False,)},
            nullable=frozenset({"head_dim"}),
        ),
    )
}
