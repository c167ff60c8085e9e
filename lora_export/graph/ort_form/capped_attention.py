"""Attentions whose scores are capped (Gemma 2), as one node.

    Softmax(cap · tanh(q kᵀ · scale / cap) + mask) v   →   Attention(q, k, v, mask), softcap = cap

A portable graph leaves them written out, because TensorRT's parser takes no ``softcap``. q is
``[batch, heads, new, width]``; the repetition of the heads of k and v disappears.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx import helper

from lora_export.graph.ort_form.indexed_graph import IndexedGraph, attributes_of, replace_nodes

if TYPE_CHECKING:
    import onnx

__all__ = ["name_capped_attentions"]

_TRANSPOSED: Final = [0, 1, 3, 2]
_HEADS: Final = (2,)
"""The axis in which the heads of keys and values are repeated for those of the queries."""


def name_capped_attentions(model: onnx.ModelProto) -> None:
    """Make one node of each attention with capped scores; mutates `model`.

    What the nodes were made of is left in the graph where it is read by nobody.
    """
    index = IndexedGraph(model)
    replaced: dict[int, list[onnx.NodeProto]] = {}
    for node in index.nodes:
        if node.op_type != "Softmax" or attributes_of(node).get("axis", -1) not in {-1, 3}:
            continue
        product = index.only_reader(node.output[0], "MatMul")
        if product is None or product.input[0] != node.output[0]:
            continue
        found = _capped(node.input[0], product.input[1], index)
        if found is not None:
            inputs, scale, cap = found
            replaced[index.place(product.output[0])] = [
                helper.make_node(
                    "Attention", inputs, list(product.output), name=product.name,
                    scale=scale, softcap=cap,
                )
            ]  # fmt: skip
    replace_nodes(model.graph, replaced)


def _capped(scores: str, values: str, index: IndexedGraph) -> tuple[list[str], float, float] | None:
    """Return q, k, v and mask, the scale and the cap, where `scores` are capped and masked."""
    total = index.producer(scores, "Add")
    for capped, mask in _orders(total):
        inner, cap = _product(capped, index)
        tanh = index.producer(inner, "Tanh")
        quotient = index.producer(tanh.input[0], "Div") if tanh is not None else None
        if quotient is None or cap is None or _number(quotient.input[1], index) != cap:
            continue
        matrix, scale = _product(quotient.input[0], index)
        product = index.producer(matrix, "MatMul")
        turned = index.producer(product.input[1], "Transpose") if product is not None else None
        if product is None or turned is None or attributes_of(turned).get("perm") != _TRANSPOSED:
            continue
        k, v = (_once(name, index) for name in (turned.input[0], values))
        return [product.input[0], k, v, mask], 1.0 if scale is None else scale, cap
    return None


def _orders(node: onnx.NodeProto | None) -> list[tuple[str, str]]:
    """Return the operands of a node in both orders."""
    if node is None:
        return []
    return [(node.input[0], node.input[1]), (node.input[1], node.input[0])]


def _product(name: str, index: IndexedGraph) -> tuple[str, float | None]:
    """Return x and c where a value is ``x · c``; the value itself and None otherwise."""
    for one, other in _orders(index.producer(name, "Mul")):
        number = _number(other, index)
        if number is not None:
            return one, number
    return name, None


def _number(name: str, index: IndexedGraph) -> float | None:
    array = index.constant(name)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _once(name: str, index: IndexedGraph) -> str:
    """Return keys or values before their heads are repeated; themselves where they are not."""
    merged = index.producer(name, "Reshape")
    expand = index.producer(merged.input[0], "Expand") if merged is not None else None
    apart = index.producer(expand.input[0], "Unsqueeze") if expand is not None else None
    if apart is None or index.integers(apart.input[1]) != _HEADS:
        return name
    return str(apart.input[0])
