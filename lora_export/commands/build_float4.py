"""Weights in four-bit floats, as a recipe asks for them: what a graph has to have for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.four_bit_floats import float4_of
from lora_export.core.graph_forms import ORT_FORM
from lora_export.core.quantization import ALL_INPUTS
from lora_export.weights.quantization.methods import NEAREST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.commands.recipe import QuantizeSpec, Recipe
    from lora_export.core.tensors import Tensor

__all__ = ["not_stored_so", "require_float4"]


def require_float4(recipe: Recipe) -> None:
    """Require that a graph can have the four-bit floats that are asked for.

    Raises:
        UnsupportedError: Its form has no operator for them.
        UsageError: The method is one for integers.
    """
    spec = recipe.quantize
    if spec is None or float4_of(spec.weights) is None:
        return
    if recipe.graph_form != ORT_FORM:
        msg = (
            f"{spec.weights} weights are read by MatMulBnb4, an operator of ONNX Runtime that the "
            f"graph form {recipe.graph_form!r} does not have"
        )
        hint = "Give --graph-form ort. Or leave --quantize out: weights are then written as floats."
        raise UnsupportedError(msg, hint=hint)
    if "method" in spec.model_fields_set and spec.method != NEAREST:
        msg = f"method {spec.method!r} finds integers; {spec.weights} codes are rounded to nearest"
        raise UsageError(msg, hint="Leave --quantize-method out.")
    if spec.block_size == ALL_INPUTS:
        msg = f"{spec.weights} weights share scales in blocks; a block size of 'all' is for int8"
        raise UsageError(msg, hint="Choose a block size from 16 to 256, or int8.")


def not_stored_so(spec: QuantizeSpec, stored: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the parameters that a base keeps out of its four-bit floats, each with the reason.

    Where it stores weights in the scheme that is asked for, others stay as adapters were trained
    beside them, in float.
    """
    if float4_of(spec.weights) is None:
        return {}
    from lora_export.weights.quantized.carried_codes import reason_not_to_carry

    reasons = {name: reason_not_to_carry(each, spec.weights) for name, each in stored.items()}
    has_any = not all(reasons.values())
    return {name: reason for name, reason in reasons.items() if reason} if has_any else {}
