"""Norms, and the sums before them, as ONNX Runtime's own operators.

    1. ``RMSNormalization(x, w)``                       →  ``SimplifiedLayerNormalization``
    2. ``s = a + b`` and ``RMSNormalization(s, w)``     →  ``SkipSimplifiedLayerNormalization``
    3. ``s = a + b`` and ``LayerNormalization(s, w, b)`` →  ``SkipLayerNormalization``

The operators of cases 2 and 3 return s as well, which the next residual sum reads. They take
``[batch, new, width]``; a norm of anything else, and a sum with a bias, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onnx import helper

from lora_export.graph.ort_form.attention import CONTRIB
from lora_export.graph.ort_form.indexed_graph import IndexedGraph, attributes_of, replace_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from lora_export.graph.ort_form.indexed_graph import Axes

__all__ = ["SIMPLIFIED_NORM", "FusedNorms", "fuse_norms"]

SIMPLIFIED_NORM: Final = "SimplifiedLayerNormalization"
"""ONNX Runtime has this operator under ONNX's own domain."""

_RANK: Final = 3
_DEFAULT_EPSILON: Final = 1e-5


@dataclass
class FusedNorms:
    """The number of norms that became each operator."""

    simplified: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class _Skip:
    """The operator of a norm with its sum.

    Attributes:
        kind: Its name.
        inputs: How many inputs the norm has behind x.
    """

    kind: str
    inputs: int


_SKIPS: Final = {
    "RMSNormalization": _Skip("SkipSimplifiedLayerNormalization", 1),
    "LayerNormalization": _Skip("SkipLayerNormalization", 2),
}


def fuse_norms(model: onnx.ModelProto, shapes: Mapping[str, Axes]) -> FusedNorms:
    """Rewrite the norms of a graph; mutates `model`.

    Args:
        model: The graph.
        shapes: The axes of its values.

    Returns:
        How many of each there are.
    """
    index = IndexedGraph(model, shapes)
    found = FusedNorms()
    replaced: dict[int, list[onnx.NodeProto]] = {}
    for at, node in enumerate(index.nodes):
        if node.domain or node.op_type not in _SKIPS or not _is_plain(node, index):
            continue
        total = index.producer(node.input[0], "Add")
        place = index.place(node.input[0]) if total is not None else -1
        if total is not None and place not in replaced and _is_residual(total, index):
            # where the sum was: what reads it stands behind it
            replaced[place] = [_skip(node, total)]
            replaced[at] = []
            found.skipped += 1
        elif node.op_type == "RMSNormalization":
            replaced[at] = [_simplified(node)]
            found.simplified += 1
    replace_nodes(model.graph, replaced)
    return found


def _is_plain(node: onnx.NodeProto, index: IndexedGraph) -> bool:
    """Whether a norm is over the last axis, and has the one output that is read."""
    axis = attributes_of(node).get("axis", -1)
    rank = len(index.shapes.get(node.input[0], ()))
    return len(node.output) == 1 and axis in {-1, rank - 1}


def _is_residual(total: onnx.NodeProto, index: IndexedGraph) -> bool:
    """Whether a sum is one of two states ``[batch, new, width]``."""
    axes = [index.shapes.get(name, ()) for name in total.input]
    whole = all(len(each) == _RANK and each[2] is not None for each in axes)
    states = not any(index.is_initializer(name) for name in total.input)
    return whole and states and axes[0][2] == axes[1][2] and axes[0][1:2] == axes[1][1:2]


def _skip(norm: onnx.NodeProto, total: onnx.NodeProto) -> onnx.NodeProto:
    row = _SKIPS[norm.op_type]
    inputs = [*total.input, *norm.input[1 : 1 + row.inputs]]
    outputs = [norm.output[0], "", "", total.output[0]]
    return helper.make_node(
        row.kind, inputs, outputs, name=norm.name, domain=CONTRIB, **_epsilon(norm)
    )


def _simplified(norm: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node(
        SIMPLIFIED_NORM, list(norm.input), list(norm.output),
        name=norm.name, axis=-1, stash_type=1, **_epsilon(norm),
    )  # fmt: skip


def _epsilon(norm: onnx.NodeProto) -> dict[str, Any]:
    return {"epsilon": attributes_of(norm).get("epsilon", _DEFAULT_EPSILON)}
