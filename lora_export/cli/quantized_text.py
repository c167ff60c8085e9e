"""The bytes that quantization saves, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.cli.text import size

if TYPE_CHECKING:
    from lora_export.exports.quantized_summary import QuantizedSummary

__all__ = ["saved_bytes"]


def saved_bytes(found: QuantizedSummary, dtype: str) -> str:
    """Return the bytes of quantized weights beside those that they would take in float."""
    share = found.bytes / found.float_bytes
    return f"{size(found.bytes)} for {size(found.float_bytes)} of {dtype} ({share:.0%})"
