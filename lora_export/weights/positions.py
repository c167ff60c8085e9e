"""How many tokens a model has positions for, from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["longest_text"]

_POSITION_KEYS: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions")
_SMALL_PADDING: Final = 2


def longest_text(config: Mapping[str, Any]) -> int:
    """Return how many tokens a model has positions for."""
    positions = next((int(config[k]) for k in _POSITION_KEYS if config.get(k)), 512)
    padding = config.get("pad_token_id") or 0  # RoBERTa's positions begin after it
    return max(1, positions - (padding + 1 if padding <= _SMALL_PADDING else 0))
