"""Products, mask and softmax of an attention, fused into the one node of opset 23.

    ``Softmax(q kᵀ · scale + mask) v``  →  ``Attention(q, k, v, mask)``

q is ``[batch, heads, new, width]``; k and v are ``[batch, kv_heads, all, width]``, and the
repetition of their heads disappears. What masks (causality, a window, padding) stays the value that
it was, and is added as it was: the operator's own causality knows no padding. Scores that are
capped before (Gemma 2) stay written out: TensorRT's parser takes no ``softcap``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from lora_export.graph.nodes.node_match import (
    constant,
    only_reader,
    producer_of_type,
    replace_output,
    scalar,
    shape_of,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fuse_attention"]

_RANK: Final = 4
_KEYS: Final = (0, 2, 1, 3)
_TRANSPOSED: Final = (0, 1, 3, 2)
_TRANSPOSED_AT_ONCE: Final = (0, 2, 3, 1)


@dataclass(frozen=True)
class _Scores:
    """``q kᵀ · scale + sum of biases``."""

    q: ir.Value
    keys: ir.Value
    swapped: bool
    scale: float = 1.0
    biases: tuple[ir.Value, ...] = ()


def fuse_attention(
    graph: ir.Graph, softmax: ir.Node, masks: dict[tuple[Any, ...], ir.Value]
) -> bool:
    """Replace the attention that `softmax` is in by one node; return whether it was one.

    Args:
        graph: The graph; mutated.
        softmax: The softmax over the scores.
        masks: What is added to scores, as the operator takes it, by what it is made of; mutated.
    """
    product = _product_with_values(softmax)
    scores = _scores(_without_cast(softmax.inputs[0]))
    if product is None or scores is None:
        return False
    k = scores.keys if scores.swapped else _once_for_each_head(scores.keys)
    v = _once_for_each_head(product.inputs[1])
    mask = _mask(graph, product, scores, masks)
    if k is None or v is None or not _fit(scores, k, v) or (mask is None and scores.biases):
        return False
    if scores.swapped:
        k = _with_heads_first(graph, product, k)
    inputs = [scores.q, k, v, *([mask] if mask is not None else [])]
    replace_output(graph, product, [ir.node("Attention", inputs, {"scale": scores.scale})])
    return True


def _product_with_values(softmax: ir.Node) -> ir.Node | None:
    """Return the product of probabilities ``[batch, heads, new, all]`` and values, if it is one."""
    probabilities = softmax.outputs[0]
    axes, axis = shape_of(probabilities), softmax.attributes.get_int("axis", -1)
    if axes is None or len(axes) != _RANK or axis not in {-1, _RANK - 1}:
        return None
    cast = only_reader(probabilities, "Cast")
    if cast is not None:
        (probabilities,) = cast.outputs
    product = only_reader(probabilities, "MatMul")
    return product if product is not None and product.inputs[0] is probabilities else None


def _fit(scores: _Scores, k: ir.Value, v: ir.Value) -> bool:
    """Whether heads are known and divide each other, as the operator asks."""
    q_axes, k_axes, v_axes = shape_of(scores.q), shape_of(k), shape_of(v)
    if q_axes is None or k_axes is None or v_axes is None:
        return False
    if not len(q_axes) == len(k_axes) == len(v_axes) == _RANK or scores.scale <= 0:
        return False
    heads, kv_heads = q_axes[1], k_axes[2 if scores.swapped else 1]
    return (
        isinstance(heads, int)
        and isinstance(kv_heads, int)
        and heads % kv_heads == 0
        and v_axes[1] == kv_heads
        and all(each.dtype == scores.q.dtype for each in (k, v, *scores.biases))
    )


def _without_cast(value: ir.Value | None) -> ir.Value | None:
    """Return the input of a cast that serves the softmax alone, else `value`."""
    cast = producer_of_type(value, "Cast")
    alone = cast is not None and len(cast.outputs[0].uses()) == 1
    return cast.inputs[0] if cast is not None and alone else value


def _scores(value: ir.Value | None) -> _Scores | None:
    """Read scores and what is added to them; nobody else may read what is in between."""
    core = _core(value)
    if core is not None:
        return core
    for inner, bias in _operands(value, "Add") if _is_inside(value) else ():
        found = _scores(inner)
        if found is not None:
            nothing = scalar(bias) == 0.0
            return found if nothing else replace(found, biases=(*found.biases, bias))
    return None


def _is_inside(value: ir.Value | None) -> bool:
    """Whether `value` is read once, and thus by what it is part of."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _core(value: ir.Value | None) -> _Scores | None:
    """Read scores without biases: a scale, then the product."""
    unscaled, scale = _scaled(value)
    if not _is_inside(value) or not _is_inside(unscaled):
        return None
    product = producer_of_type(unscaled, "MatMul")
    transpose = producer_of_type(product.inputs[1], "Transpose") if product is not None else None
    if product is None or transpose is None or product.inputs[0] is None:
        return None
    order = tuple(transpose.attributes.get_ints("perm", ()))
    keys = transpose.inputs[0]
    if keys is None or order not in {_TRANSPOSED, _TRANSPOSED_AT_ONCE}:
        return None
    return _Scores(product.inputs[0], keys, order == _TRANSPOSED_AT_ONCE, scale)


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Return v and c where `value` is ``v · c`` or ``v / (1 / c)``; c is 1 for any other."""
    for inner, factor in _operands(value, "Mul"):
        number = scalar(factor)
        if number is not None:
            return inner, number
    quotient = producer_of_type(value, "Div")
    number = scalar(quotient.inputs[1]) if quotient is not None else None
    if quotient is not None and number:
        return quotient.inputs[0], 1.0 / number
    return value, 1.0


def _operands(value: ir.Value | None, op_type: str) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the operands of the `op_type` that makes `value`, in both orders."""
    node = producer_of_type(value, op_type)
    for one, other in (node.inputs, node.inputs[::-1]) if node is not None else ():
        if one is not None and other is not None:
            yield one, other


def _once_for_each_head(value: ir.Value | None) -> ir.Value | None:
    """Return keys or values before their heads are repeated for the queries', else `value`.

    ``Reshape(Expand(Unsqueeze(x, 2)))`` repeats them: ``[b, kv, n, d]`` to ``[b, kv·r, n, d]``.
    """
    merged = producer_of_type(value, "Reshape")
    expand = producer_of_type(merged.inputs[0], "Expand") if merged is not None else None
    unsqueeze = producer_of_type(expand.inputs[0], "Unsqueeze") if expand is not None else None
    if expand is None or unsqueeze is None or vector(unsqueeze.inputs[1]) != (2,):
        return value
    before, wide, after = (
        shape_of(each) for each in (unsqueeze.inputs[0], expand.outputs[0], value)
    )
    if not before or not wide or not after or len(after) != _RANK:
        return value
    kv_heads, copies = wide[1], wide[2]
    if not isinstance(kv_heads, int) or not isinstance(copies, int) or before[1] != kv_heads:
        return value
    same = after[1] == kv_heads * copies and after[-1] == before[-1]
    return unsqueeze.inputs[0] if same else value


def _with_heads_first(graph: ir.Graph, before: ir.Node, keys: ir.Value) -> ir.Value:
    """Return keys ``[b, n, h, d]`` as ``[b, h, n, d]``."""
    node = ir.node("Transpose", [keys], {"perm": _KEYS})
    (result,) = node.outputs
    result.name = node.name = f"{keys.name}.heads"
    axes = shape_of(keys)
    assert axes is not None  # noqa: S101  (_fit has looked at them)
    result.shape, result.type = ir.Shape([axes[at] for at in _KEYS]), keys.type
    graph.insert_before(before, [node])
    return result


def _mask(
    graph: ir.Graph, before: ir.Node, scores: _Scores, masks: dict[tuple[Any, ...], ir.Value]
) -> ir.Value | None:
    """Return the sum of the biases, with a row for each query; made once for all layers."""
    if not scores.biases:
        return None
    shapes = [shape_of(each) for each in scores.biases]
    queries = shape_of(scores.q)
    if queries is None or any(axes is None or len(axes) != _RANK for axes in shapes):
        return None
    sizes = [
        next((axes[at] for axes in shapes if axes and axes[at] != 1), 1) for at in range(_RANK)
    ]
    if None in sizes or sizes[-1] == 1:
        return None
    narrow = sizes[2] == 1 and queries[2] != 1
    key = (*scores.biases, queries[2] if narrow else None)
    if key in masks:
        return masks[key]
    value, *rest = scores.biases
    nodes: list[ir.Node] = []
    for each in rest:
        nodes.append(ir.node("Add", [value, each]))
        nodes[-1].name = nodes[-1].outputs[0].name = f"{value.name}.{each.name}"
        (value,) = nodes[-1].outputs
    if narrow:
        nodes += _for_each_query(graph, value, scores.q)
        (value,) = nodes[-1].outputs
        sizes[2] = queries[2]
    if nodes:
        value.shape, value.type = ir.Shape(sizes), scores.q.type
        graph.insert_before(before, nodes)
    masks[key] = value
    return value


def _for_each_query(graph: ir.Graph, mask: ir.Value, q: ir.Value) -> list[ir.Node]:
    """Return nodes that repeat `mask` ``[batch, 1, 1, all]`` for each query."""
    stem = f"{mask.name}.queries"
    one = constant(graph, np.array([1], np.int64), f"{stem}.one")
    ones = constant(graph, np.array([1, 1], np.int64), f"{stem}.ones")
    length = ir.node("Shape", [q], {"start": 2, "end": 3})
    shape = ir.node("Concat", [ones, length.outputs[0], one], {"axis": 0})
    expand = ir.node("Expand", [mask, shape.outputs[0]])
    for node, name in ((length, f"{stem}.length"), (shape, f"{stem}.shape"), (expand, stem)):
        node.name = node.outputs[0].name = name
    return [length, shape, expand]
