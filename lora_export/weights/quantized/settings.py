"""The quantization settings of a ``config.json``, checked where they are read.

transformers writes ``quantization_config``, older files of compressed-tensors
``compression_config``; a model inside the model may have its own. AutoGPTQ and AutoAWQ also wrote
it into a file of its own, ``quantize_config.json`` or ``quant_config.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import CheckpointError
from lora_export.core.json_file import read_table
from lora_export.core.quantization_tables import check_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.json_file import JsonObject

__all__ = ["KEYS", "read_settings", "settings_in"]

KEYS: Final = ("quantization_config", "compression_config")
_SECTIONS: Final = ("text_config", "llm_config")
_FILES: Final = ("quantize_config.json", "quant_config.json")
_LIMIT_BYTES: Final = 1 << 24


def settings_in(config: Mapping[str, Any]) -> Any:
    """Return what a config says about quantization, of whatever type; None where it says nothing.

    A method's own name as text is older than the table; it is for messages only.
    """
    sections = (config, *(config.get(name) for name in _SECTIONS))
    tables = (each for each in sections if isinstance(each, dict))
    found = (table.get(key) for table in tables for key in KEYS)
    return next((each for each in found if each), None)


def read_settings(config: Mapping[str, Any], folder: Path) -> JsonObject:
    """Return the settings of a quantized checkpoint; empty where there are none.

    Raises:
        CheckpointError: A setting has another type than it can have.
    """
    held = settings_in(config)
    where = "config.json"
    if held is None:
        name = next((each for each in _FILES if (folder / each).is_file()), None)
        if name is None:
            return {}
        where = name
        held = read_table(
            folder / name, _LIMIT_BYTES, CheckpointError,
            absent="Copy the checkpoint again.", damaged="Copy the checkpoint again.",
        )  # fmt: skip
    if not isinstance(held, dict):
        return {"quant_method": held if isinstance(held, str) else None}
    check_settings(held, where=where)
    return held
