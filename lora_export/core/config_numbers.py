"""Numbers of a model's config, which its author may have set to anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["text_settings", "whole_number"]

_MOST: Final = (1 << 31) - 1


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the settings of its tower for texts, where it has one, put first."""
    text = config.get("text_config")
    return {**config, **(text if isinstance(text, dict) else {})}


def whole_number(config: Mapping[str, Any], key: str, default: int = 0) -> int:
    """Return a setting that counts something: a whole number from 0 to 2³¹ - 1.

    Args:
        config: The config, or a table in it.
        key: The setting.
        default: What it is where it is absent, null, false or 0.

    Raises:
        CheckpointError: It is something else.

    >>> whole_number({"n_positions": 512}, "n_positions")
    512
    """
    value = config.get(key) or default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 0 <= value <= _MOST:
        shown = f"a number of {len(bin(value)) - 2} bits" if isinstance(value, int) else repr(value)
        msg = f"the config's {key!r} is {shown[:80]}, not a number from 0 to {_MOST}"
        raise CheckpointError(msg, hint="Correct config.json.")
    return value
