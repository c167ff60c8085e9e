"""Detection of quantized checkpoints, by what is stored rather than by the config.

A checkpoint that was loaded quantized and saved dequantized keeps ``quantization_config`` in its
``config.json``, though its weights are floating-point numbers again. Weights are quantized where
one of them is stored as integers or 8-bit floats: codes, which are numbers only together with their
scales. Every quantizer of transformers stores such codes; tables of indices and masks
(``position_ids``, ``relative_position_index``, ``attn.bias``) are none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import UnsupportedError
from lora_export.core.shown_value import shown
from lora_export.weights.quantized.settings import KEYS, settings_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.core.tensors import Tensor

__all__ = ["code_names", "method_of", "refuse_quantized", "without_leftover"]

_SHOWN: Final = 40
_CODES: Final = frozenset({"int8", "uint8", "int16", "int32", "float8_e4m3fn", "float8_e5m2"})
_TABLES: Final = re.compile(
    r"(?:.*\.)?(?:attn\.bias|attention\.bias|masked_bias|position_ids|token_type_ids"
    r"|num_batches_tracked|.*_index|.*_mask|.*_indices|.*_buckets?)"
)


def code_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are codes, from their headers."""
    return [name for name, tensor in tensors.items() if _is_code(name, tensor)]


def _is_code(name: str, tensor: Tensor) -> bool:
    codes = tensor.dtype.name in _CODES and len(tensor.shape) > 0
    return codes and _TABLES.fullmatch(name) is None


def method_of(config: Mapping[str, Any]) -> str | None:
    """Return the method that a config names, as text for a message; None where it names none."""
    settings = settings_in(config)
    if not settings:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    return method if isinstance(method, str) and len(method) <= _SHOWN else shown(method)


def refuse_quantized(config: Mapping[str, Any], folder: Path) -> None:
    """Raise for a checkpoint whose config names a quantizer.

    Raises:
        UnsupportedError: It does; the message has the method.
    """
    method = method_of(config)
    if method is not None:
        msg = f"the base {str(folder)!r} is quantized ({method}), which is not read"
        raise UnsupportedError(
            msg,
            hint="Give the unquantized checkpoint that the adapter was trained for; "
            "docs/checkpoints.md lists the formats that are read.",
        )


def without_leftover(config: Mapping[str, Any]) -> JsonObject:
    """Return the config of a checkpoint of floats, at any depth without its quantization."""
    return {
        key: without_leftover(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in KEYS
    }
