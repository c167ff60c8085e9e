"""Quantized weights as text: how they are stored, and the bytes that this saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.cli.text import size

if TYPE_CHECKING:
    from lora_export.core.quantization_record import StoredForm
    from lora_export.exports.quantized_summary import QuantizedSummary

__all__ = ["REMEDIES", "saved_bytes", "stored_form"]

REMEDIES: Final = (
    "What helps: keep these layers in float (quantize.keep), int8 (quantize.weights), smaller "
    "blocks (quantize.block_size: 16), or the adapter in float (mode: swappable)."
)
"""Options that help where a loss is too large."""


def stored_form(found: StoredForm) -> str:
    """Return how the weights of a quantized base are stored."""
    bits = " and ".join(map(str, found.bits))
    groups = " and ".join(str(size) for size in found.group_sizes if size)
    in_groups = f", groups of {groups}" if groups else ""
    schemes = ", ".join(found.schemes)
    return f"{found.weights:,} weights: {found.method} {schemes}, {bits} bits{in_groups}"


def saved_bytes(found: QuantizedSummary, dtype: str) -> str:
    """Return the bytes of quantized weights beside those that they would take in float."""
    share = found.bytes / found.float_bytes
    return f"{size(found.bytes)} for {size(found.float_bytes)} of {dtype} ({share:.0%})"
