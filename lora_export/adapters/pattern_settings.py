"""Settings of a PEFT adapter by module: ``rank_pattern``, ``alpha_pattern`` and their kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.bounded_match import matches
from lora_export.core.errors import AdapterError
from lora_export.core.patterns import PatternError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["setting_of"]


def setting_of(config: Mapping[str, Any], setting: str, module: str, default: Any) -> Any:
    """Return the setting for `module`: the first pattern that matches, as PEFT matches it.

    Args:
        config: The adapter's config.
        setting: The table by pattern (``rank_pattern``).
        module: The module's path.
        default: The value where no pattern matches.

    Raises:
        AdapterError: A pattern is not a regular expression that can be used.
    """
    for pattern, value in (config.get(setting) or {}).items():
        if pattern == module:
            return value
        try:
            if matches(rf"(.*\.)?({pattern})$", module, core=pattern):
                return value
        except PatternError as error:
            msg = f"{setting} has the pattern {pattern[:60]!r}, which cannot be used: {error}"
            hint = "Write it as plain module names in adapter_config.json."
            raise AdapterError(msg, hint=hint) from error
    return default
