"""The number of tokens that a model has positions for, from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.config_numbers import text_settings, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["POSITION_KEYS", "count_positions", "long_rope_threshold", "longest_text"]

_TEXT_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_target_positions",
    "max_seq_len",
)
"""Settings of a config that say how many positions a text has; the first that is set counts."""

POSITION_KEYS: Final = (
    *_TEXT_KEYS,
    "max_source_positions",
    "max_encoder_position_embeddings",
    "max_decoder_position_embeddings",
    "context_length",
    "max_sequence_length",
    "seq_length",
)
"""All settings that say how many positions a model, or a part of it, has."""

_AFTER_PADDING: Final = frozenset(
    {
        "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model",
        "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm",
        "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
"""Model types whose first position is the one behind ``pad_token_id``, as fairseq counts."""
_LONG_ROPE: Final = frozenset({"longrope", "su"})
"""What configs call frequencies that are others for long texts; ``su`` is Phi-3's first word."""
_YARN_IS_LONG_ROPE: Final = ("phi3", "phi4_multimodal")
"""Model types that read ``yarn`` as ``longrope``, which they called so for a while."""

_LENGTH: Final = "original_max_position_embeddings"
_OWN_LENGTH: Final = {"phi3": 4096, "phi4_multimodal": 4096}
"""Model types whose config has `_LENGTH` as a setting of its own, read first, and its default."""


def count_positions(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a config gives texts; None where it does not say."""
    config = text_settings(config)
    return next((whole_number(config, key) for key in _TEXT_KEYS if config.get(key)), None)


def longest_text(config: Mapping[str, Any]) -> int:
    """Return how many tokens a model has positions for.

    >>> longest_text({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0})
    512
    >>> longest_text({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    512
    >>> longest_text({"model_type": "mpt", "max_seq_len": 2048})
    2048
    >>> longest_text({"model_type": "clip", "text_config": {"max_position_embeddings": 77}})
    77
    """
    config = text_settings(config)
    positions = count_positions(config) or 512
    first = 0
    if config.get("model_type") in _AFTER_PADDING:
        first = whole_number(config, "pad_token_id") + 1
    return max(1, positions - first)


def long_rope_threshold(config: Mapping[str, Any]) -> int | None:
    """Return the longest text that has the rotary frequencies of short ones; None for any.

    Keys that a cache holds were rotated by the frequencies of their time: where a text outgrows
    this length, they have to be computed again.
    """
    config = text_settings(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return None
    by_layer_type = [each for each in rope.values() if isinstance(each, dict)]
    kind = str(config.get("model_type"))
    own = config.get(_LENGTH, _OWN_LENGTH[kind]) if kind in _OWN_LENGTH else None
    longest = whole_number(config, "max_position_embeddings")
    lengths = [
        whole_number(
            {_LENGTH: (own if not by_layer_type else None) or each.get(_LENGTH)}, _LENGTH, longest
        )
        for each in by_layer_type or [rope]
        if _is_long_rope(kind, each)
    ]
    return min((length for length in lengths if length), default=None)


def _is_long_rope(model_type: str, rope: Mapping[str, Any]) -> bool:
    kind = rope.get("rope_type", rope.get("type"))
    return kind in _LONG_ROPE or (kind == "yarn" and model_type in _YARN_IS_LONG_ROPE)
