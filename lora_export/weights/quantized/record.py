"""The record of how the weights of a quantized base are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.quantization_record import StoredForm

if TYPE_CHECKING:
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["quantization_record"]


def quantization_record(checkpoint: Checkpoint) -> StoredForm | None:
    """Return how the weights of `checkpoint` are stored; None where they are floats."""
    if checkpoint.quantized is None:
        return None
    forms = [weight.form for weight in checkpoint.quantized.weights.values()]
    return StoredForm(
        method=forms[0].method,
        schemes=sorted({form.scheme for form in forms}),
        bits=sorted({form.bits for form in forms}),
        group_sizes=sorted({form.group_size for form in forms}),
        weights=len(forms),
    )
