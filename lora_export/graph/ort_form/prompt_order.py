"""Padding anywhere in a batch, for an attention whose rows are padded at their end.

`GroupQueryAttention` writes the new positions of a row behind those that it has, and lets a query
see all before it: padding may only follow the tokens of a row. Here the tokens of each row are put
in front of its padding first, and the states of all positions back in their places before the head:

    place   [batch, new]   where a token goes: the tokens in their order, then the padding
    ids     input_ids      scattered to `place`; so are position_ids
    seqlens_k [batch]      what the row has of the past, plus the new positions, minus 1
    states  [batch, new, width]   gathered from `place`

A row without padding stays as it is. Texts that are padded on the left, on the right, or with holes
(as onnxruntime-genai leaves them between a prompt and its answer) then give what they give alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ORDERED", "SEQLENS_K", "TOTAL_LENGTH", "order_nodes", "restore_nodes"]

Added = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]

ORDERED: Final = ".ordered"
"""The suffix of an input whose tokens were put in front of the padding."""
SEQLENS_K: Final = "order.seqlens_k"
TOTAL_LENGTH: Final = "order.total_sequence_length"
_MASK: Final = "attention_mask"
_IDS: Final = "input_ids"
_PLACE: Final = "order.place"


def order_nodes(reordered: Sequence[str]) -> Added:
    """Return the nodes that put tokens in front of padding, for the beginning of a graph.

    They make `SEQLENS_K` ``[batch]`` and `TOTAL_LENGTH` ``[1]``, int32, and each of `reordered`
    ``[batch, new]`` under its name with `ORDERED` behind it.

    Args:
        reordered: Inputs ``[batch, new]``.

    Returns:
        The nodes, and the constants that they read.
    """
    constants = [
        _constant("order.zero", 0),
        _constant("order.one", 1),
        _constant("order.zeros", [0]),
        _constant("order.axis", [1]),
        _constant("order.end", [np.iinfo(np.int64).max]),
    ]
    nodes = [
        _node("Shape", [_IDS], "order.new", start=1, end=2),
        _node("Shape", [_MASK], "order.all", start=1, end=2),
        _node("Cast", ["order.all"], TOTAL_LENGTH, to=TensorProto.INT32),
        _node("Sub", ["order.all", "order.new"], "order.past"),
        # the mask of the new positions, and how many tokens each row has
        _node("Slice", [_MASK, "order.past", "order.end", "order.axis"], "order.mask"),
        _node("ReduceSum", ["order.mask", "order.axis"], "order.tokens", keepdims=1),
        _node("Slice", [_MASK, "order.zeros", "order.past", "order.axis"], "order.past_mask"),
        _node("ReduceSum", ["order.past_mask", "order.axis"], "order.written", keepdims=0),
        _node("Add", ["order.written", "order.new"], "order.present"),
        _node("Sub", ["order.present", "order.one"], "order.last"),
        _node("Cast", ["order.last"], SEQLENS_K, to=TensorProto.INT32),
        # tokens: how many precede; padding: all tokens, and how much padding precedes
        _node("CumSum", ["order.mask", "order.one"], "order.counted"),
        _node("Sub", ["order.counted", "order.one"], "order.token_place"),
        _node("Squeeze", ["order.new"], "order.length"),
        _node("Range", ["order.zero", "order.length", "order.one"], "order.positions"),
        _node("Sub", ["order.positions", "order.counted"], "order.padding_before"),
        _node("Add", ["order.tokens", "order.padding_before"], "order.padding_place"),
        _node("Cast", ["order.mask"], "order.is_token", to=TensorProto.BOOL),
        _node("Where", ["order.is_token", "order.token_place", "order.padding_place"], _PLACE),
    ]
    nodes += [
        _node("ScatterElements", [name, _PLACE, name], f"{name}{ORDERED}", axis=1)
        for name in reordered
    ]
    return nodes, constants


def restore_nodes(states: str, restored: str) -> Added:
    """Return the nodes that put states ``[batch, new, width]`` back in their places.

    Args:
        states: The states in the order of `order_nodes`.
        restored: The name of the result.
    """
    nodes = [
        _node("Unsqueeze", [_PLACE, "order.last_axis"], "order.places"),
        _node("GatherND", [states, "order.places"], restored, batch_dims=1),
    ]
    return nodes, [_constant("order.last_axis", [-1])]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def _constant(name: str, value: int | list[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)
