"""How many tokens a model has positions for, from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["longest_text", "switching_length"]

_POSITION_KEYS: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions")
_SMALL_PADDING: Final = 2
_LONG_ROPE: Final = frozenset({"longrope", "su"})
"""What configs call frequencies that are others for long texts; ``su`` is Phi-3's first word."""


def longest_text(config: Mapping[str, Any]) -> int:
    """Return how many tokens a model has positions for."""
    positions = next((int(config[k]) for k in _POSITION_KEYS if config.get(k)), 512)
    padding = config.get("pad_token_id") or 0  # RoBERTa's positions begin after it
    return max(1, positions - (padding + 1 if padding <= _SMALL_PADDING else 0))


def switching_length(config: Mapping[str, Any]) -> int | None:
    """Return the longest text that has the rotary frequencies of short ones; None for any.

    Keys that a cache holds were rotated by the frequencies of their time: where a text outgrows
    this length, they have to be computed again.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in _LONG_ROPE:
        return None
    name = "original_max_position_embeddings"
    length = rope.get(name) or config.get(name)
    return int(length) if length else None
