"""`Attention` with its rotation and its cache, fused into `GroupQueryAttention`.

    q = Rotary(Heads(x_q)), k = Concat(past, Rotary(Heads(x_k))), v = Concat(past, Heads(x_v))
    Rows(Attention(q, k, v, mask))       →    GroupQueryAttention(x_q, x_k, x_v, past, …)

`Heads` is Reshape and Transpose from ``[batch, new, heads · width]`` to ``[batch, heads, new,
width]``, `Rows` the way back. The operator appends the new keys and values to the cache itself, in
the same memory where past and present are bound to one buffer.

    1. q and k are rotated by tables of all positions   →  inside, by the place in the cache
    2. by other angles, in part by an odd width, or not →  as it was, before the operator
    3. q or k is normalized after `Heads` (Gemma 3)     →  normalized before, which is the same
    4. q, k and v are parts of one product, in a row    →  the product itself
    5. the mask has a window                            →  ``local_window_size``
    6. scores are capped (Gemma 2)                      →  ``softcap``

What else a mask says, a cache of other shapes, or a bias, has no such operator: the graph is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lora_export.core.errors import UnsupportedError
from lora_export.graph.ort_form.causal_masks import window_of_mask
from lora_export.graph.ort_form.indexed_graph import attributes_of
from lora_export.graph.ort_form.prompt_order import SEQLENS_K, TOTAL_LENGTH
from lora_export.graph.ort_form.rotary_tables import POSITIONS, RotaryTables
from lora_export.graph.spec.signature import PAST

if TYPE_CHECKING:
    from lora_export.graph.ort_form.indexed_graph import IndexedGraph

__all__ = ["CONTRIB", "FusedAttentions", "fuse_attentions"]

CONTRIB: Final = "com.microsoft"
_HEADS_FIRST: Final = [0, 2, 1, 3]
_KNOWN: Final = {"scale", "softcap"}
_ROWS: Final = "attention.rows"
"""The shape that merges the heads of ``[batch, new, heads, width]``."""
_RANK: Final = 4
_WIDTH_STEP: Final = 8
_ROTATED_WIDTH_STEP: Final = 16
"""The operator takes heads whose width is a multiple of this, and of this where it rotates."""
_HINT: Final = "Leave --graph-form ort out: the portable form takes every decoder."


@dataclass
class FusedAttentions:
    """The nodes that take the places of attentions.

    Attributes:
        replaced: The nodes for the place of each attention.
        first: Nodes for the beginning of the graph.
        constants: Constants that they read.
        layers: How many attentions there are.
        rotated: How many of them rotate.
        packed: How many read q, k and v of one product.
        windows: The sizes of windows.
    """

    replaced: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    first: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    layers: int = 0
    rotated: int = 0
    packed: int = 0
    windows: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Cached:
    """Keys or values of a layer."""

    past: str
    present: str
    new: str
    heads: int
    width: int


@dataclass(frozen=True)
class _Rotation:
    """The rotation of queries and keys, as the operator does it."""

    query: str
    key: str
    cos: str
    sin: str
    interleaved: int


def fuse_attentions(
    model: onnx.ModelProto, index: IndexedGraph, positions: int | None
) -> FusedAttentions:
    """Return what takes the places of all attentions of a decoder; nothing is changed yet.

    Args:
        model: The graph.
        index: The same, indexed.
        positions: How many positions a text has at most, where the config says so.

    Raises:
        UnsupportedError: An attention is nothing that the operator computes, or there is none.
    """
    fused = FusedAttentions()
    tables = RotaryTables(model, index, positions)
    windows: dict[str, int | None] = {}
    for at, node in enumerate(index.nodes):
        if node.op_type != "Attention" or node.domain:
            continue
        mask = node.input[3] if len(node.input) > 3 else ""  # noqa: PLR2004  (q, k, v)
        if mask not in windows:
            windows[mask] = window_of_mask(model, mask, positions) if mask else None
        if not mask:
            raise _refused(node, "it has no mask")
        fused.replaced[at] = _fused(node, index, tables, windows[mask], fused)
        fused.layers += 1
    if not fused.layers:
        msg = "no attention of this model is one that ONNX Runtime has as an operator"
        raise UnsupportedError(msg, hint=_HINT)
    fused.first += tables.nodes
    fused.constants += tables.constants
    rows = np.array([0, 0, -1], np.int64)
    fused.constants.append(numpy_helper.from_array(rows, _ROWS))
    return fused


def _fused(
    node: onnx.NodeProto,
    index: IndexedGraph,
    tables: RotaryTables,
    window: int | None,
    fused: FusedAttentions,
) -> list[onnx.NodeProto]:
    """Return the nodes for the place of one attention, and count them in `fused`."""
    attributes = attributes_of(node)
    if unknown := sorted(set(attributes) - _KNOWN):
        raise _refused(node, f"it has {unknown[0]}")
    keys, values = (_cached(node, name, index) for name in node.input[1:3])
    heads = index.shapes.get(node.input[0], ())[1:2]
    if not heads or not isinstance(heads[0], int):
        raise _refused(node, "its number of heads is not known")
    if (keys.heads, keys.width) != (values.heads, values.width) or keys.width % _WIDTH_STEP:
        what = f"keys are {keys.width} wide, values {values.width}"
        raise _refused(node, f"{what}; it takes equal multiples of {_WIDTH_STEP}")
    rotation = _rotation(node.input[0], keys, index, tables)
    query, key = (rotation.query, rotation.key) if rotation else (node.input[0], keys.new)
    nodes: list[onnx.NodeProto] = []
    rows = [_as_rows(each, index, nodes) for each in (query, key, values.new)]
    sizes = (heads[0] * keys.width, keys.heads * keys.width, keys.heads * keys.width)
    whole = _whole_product(rows, sizes, index)
    inputs = [*([whole, "", ""] if whole else rows), keys.past, values.past]
    inputs += [SEQLENS_K, TOTAL_LENGTH]
    made: dict[str, Any] = {"num_heads": heads[0], "kv_num_heads": keys.heads}
    made |= attributes
    if window is not None:
        made["local_window_size"] = window
        fused.windows.add(window)
    if rotation is not None:
        inputs += [rotation.cos, rotation.sin]
        made |= {"do_rotary": 1, "rotary_interleaved": rotation.interleaved}
    fused.rotated += rotation is not None
    fused.packed += whole is not None
    out = _output(node, index, fused)
    for name in (keys.present, values.present):
        fused.replaced[index.place(name)] = []
    outputs = [out, keys.present, values.present]
    fusion = helper.make_node(
        "GroupQueryAttention", inputs, outputs, name=f"{out}.GroupQueryAttention", domain=CONTRIB,
        **made,
    )  # fmt: skip
    return [*nodes, fusion]


def _cached(node: onnx.NodeProto, name: str, index: IndexedGraph) -> _Cached:
    """Return what an attention reads as keys or values: a past input, and new ones behind it."""
    concat = index.producer(name, "Concat")
    past = concat.input[0] if concat is not None and len(concat.input) == 2 else ""  # noqa: PLR2004
    if concat is None or not past.startswith(PAST) or past not in index.inputs:
        raise _refused(node, f"{name!r} does not follow from a cache that grows")
    if attributes_of(concat).get("axis") not in {2, -2}:
        raise _refused(node, f"{name!r} does not grow with its positions")
    if name not in index.outputs or len(index.readers(name)) != 1:
        raise _refused(node, f"{name!r} is read by others than one attention")
    axes = index.shapes.get(past, ())
    if len(axes) != _RANK or not isinstance(axes[1], int) or not isinstance(axes[3], int):
        raise _refused(node, f"the cache {past!r} is {list(axes)}")
    return _Cached(past, name, concat.input[1], axes[1], axes[3])


def _rotation(
    query: str, keys: _Cached, index: IndexedGraph, tables: RotaryTables
) -> _Rotation | None:
    """Case 1; None for case 2."""
    nodes = [index.producer(name, "RotaryEmbedding") for name in (query, keys.new)]
    first, second = nodes
    if first is None or second is None or POSITIONS not in index.inputs:
        return None
    if first.input[1:] != second.input[1:] or len(first.input) != 3:  # noqa: PLR2004  (x, cos, sin)
        return None
    attributes = attributes_of(first)
    if attributes != attributes_of(second) or keys.width % _ROTATED_WIDTH_STEP:
        return None
    found = [tables.table_of(name) for name in first.input[1:]]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        return None
    width = attributes.get("rotary_embedding_dim", 0) or keys.width
    if width != 2 * found[0][1]:
        return None
    (cos, _), (sin, _) = found[0], found[1]
    return _Rotation(first.input[0], second.input[0], cos, sin, attributes.get("interleaved", 0))


def _as_rows(name: str, index: IndexedGraph, nodes: list[onnx.NodeProto]) -> str:
    """Return ``[batch, new, heads · width]`` of a value ``[batch, heads, new, width]``.

    Nodes that this takes are appended to `nodes`.
    """
    norm = index.producer(name, "RMSNormalization")
    source = norm.input[0] if norm is not None else name
    transpose = index.producer(source, "Transpose")
    if transpose is None or attributes_of(transpose).get("perm") != _HEADS_FIRST:
        made = f"{name}.by_position"
        nodes.append(helper.make_node("Transpose", [name], [made], name=made, perm=_HEADS_FIRST))
        return _merged(made, name, nodes)
    by_position = transpose.input[0]
    if norm is not None:  # case 3
        copy = onnx.NodeProto()
        copy.CopyFrom(norm)
        copy.name = copy.output[0] = f"{name}.by_position"
        copy.input[0] = by_position
        nodes.append(copy)
        return _merged(copy.output[0], name, nodes)
    reshape = index.producer(by_position, "Reshape")
    shape = index.integers(reshape.input[1]) if reshape is not None else None
    if reshape is not None and shape is not None and _splits_heads(reshape, shape, index):
        return str(reshape.input[0])
    return _merged(by_position, name, nodes)


def _splits_heads(reshape: onnx.NodeProto, shape: tuple[int, ...], index: IndexedGraph) -> bool:
    """Whether a Reshape only splits the last axis of ``[batch, new, heads · width]``."""
    before = index.shapes.get(reshape.input[0], ())
    if len(before) != _RANK - 1 or len(shape) != _RANK:
        return False
    return before[2] == shape[2] * shape[3] and shape[2] > 0 and shape[3] > 0


def _merged(by_position: str, name: str, nodes: list[onnx.NodeProto]) -> str:
    made = f"{name}.rows"
    nodes.append(helper.make_node("Reshape", [by_position, _ROWS], [made], name=made))
    return made


def _whole_product(rows: list[str], sizes: tuple[int, int, int], index: IndexedGraph) -> str | None:
    """Case 4: return the value that q, k and v are consecutive parts of, if they are."""
    parts = [index.producer(name) for name in rows]
    if any(part is None for part in parts):
        return None
    source = parts[0].input[0] if parts[0] is not None and parts[0].input else ""
    if index.shapes.get(source, ())[2:] != (sum(sizes),):
        return None
    first = parts[0]
    if first is not None and first.op_type == "Split" and not first.domain:
        same = all(part is first for part in parts)
        last = attributes_of(first).get("axis", 0) in {2, -1}
        return source if same and last and list(first.output) == rows else None
    starts = (0, sizes[0], sizes[0] + sizes[1])
    for part, start, size in zip(parts, starts, sizes, strict=True):
        if part is None or part.op_type != "Slice" or part.input[0] != source:
            return None
        if _bounds(part, index, sum(sizes)) != (start, start + size):
            return None
    return source


def _bounds(node: onnx.NodeProto, index: IndexedGraph, width: int) -> tuple[int, int] | None:
    """Return where a Slice of the last of three axes starts and ends."""
    found = [each for name in node.input[1:] if (each := index.integers(name)) is not None]
    if len(found) != len(node.input) - 1 or len(found) < 3 or any(len(e) != 1 for e in found):  # noqa: PLR2004
        return None
    (start,), (end,), (axis,), *step = found
    if axis not in {2, -1} or step not in ([], [(1,)]) or start < 0 or end < 0:
        return None
    return start, min(end, width)


def _output(node: onnx.NodeProto, index: IndexedGraph, fused: FusedAttentions) -> str:
    """Return the value in which the heads of an attention lie side by side.

    The nodes that made it are taken out of the graph by `fused`.
    """
    transpose = index.only_reader(node.output[0], "Transpose")
    if transpose is not None and attributes_of(transpose).get("perm") == _HEADS_FIRST:
        reshape = index.only_reader(transpose.output[0], "Reshape")
        axes = index.shapes.get(reshape.output[0], ()) if reshape is not None else ()
        if reshape is not None and len(axes) == _RANK - 1:
            for each in (transpose, reshape):
                fused.replaced[index.place(each.output[0])] = []
            return str(reshape.output[0])
    raise _refused(node, "its heads are not put side by side")


def _refused(node: onnx.NodeProto, why: str) -> UnsupportedError:
    msg = f"the attention {node.name!r} is none of ONNX Runtime's GroupQueryAttention: {why}"
    return UnsupportedError(msg, hint=_HINT)
