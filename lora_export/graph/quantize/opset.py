"""A graph raised to the first opset whose ``DequantizeLinear`` has blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError
from lora_export.core.quantization import BLOCKS_OPSET

if TYPE_CHECKING:
    import onnx

__all__ = ["OLDEST_RAISED", "raise_opset"]

OLDEST_RAISED: Final = 20
"""The oldest opset that can be raised."""
_IR_VERSION: Final = 10
"""The version of the format that has opset 21 and int4."""
_CHANGED: Final = frozenset({"GroupNormalization"})
"""Operators that compute something else in opset 21 than in opset 20; others take more types."""


def raise_opset(model: onnx.ModelProto) -> int:
    """Let a graph of opset 20 be one of opset 21; mutates it. Return the opset that it has then.

    Raises:
        UnsupportedError: It is older, or has a node that opset 21 changes.
    """
    own = next(each for each in model.opset_import if each.domain in {"", "ai.onnx"})
    if own.version >= BLOCKS_OPSET:
        return int(own.version)
    changed = sorted({node.op_type for node in model.graph.node} & _CHANGED)
    if own.version < OLDEST_RAISED or changed:
        what = f"has {changed[0]}" if changed else f"is of opset {own.version}"
        msg = f"the graph {what}, and blocks of quantized weights need opset {BLOCKS_OPSET}"
        raise UnsupportedError(
            msg,
            hint=f"Export it again with --opset {BLOCKS_OPSET}, or quantize to int8 with "
            "--block-size all.",
        )
    own.version = BLOCKS_OPSET
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return BLOCKS_OPSET
