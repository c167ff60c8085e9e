"""Queries, keys and values of one product, where a graph has a product for each.

    1. q = x Wq, k = x Wk, v = x Wv            →  qkv = x [Wq Wk Wv]
    2. … with a bias each, q = x Wq + b        →  qkv + [bq bk bv]
    3. … with a term each, q = x Wq + d        →  qkv + Concat(dq, dk, dv)

`GroupQueryAttention` takes qkv as it is. A term is an adapter's (`x A B`), whose inputs keep their
names; it may be followed by a bias. Weights may be integers and scales (`DequantizeLinear`): blocks
run along the rows of a matrix, so that its columns may stand beside those of another.

Where the values of several initializers stand side by side, the file with them has to be another
one: this is for graphs whose values are copied (`lora_export.graph.gathered_values`), never for
the graphs of an export, whose parameters lie under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import TensorProto, helper

from lora_export.graph.ort_form.indexed_graph import IndexedGraph, attributes_of, replace_nodes
from lora_export.graph.spec.external_values import SideBySide, external_source
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PackedGraph", "pack_products"]

_ATTENTION: Final = "GroupQueryAttention"
_HALF_BYTES: Final = frozenset({TensorProto.INT4, TensorProto.UINT4})
_DEQUANTIZED: Final = 2
"""Integers and scales: the inputs of a ``DequantizeLinear`` without zero points."""
_PARTS: Final = 3


@dataclass(frozen=True)
class PackedGraph:
    """A graph with packed products.

    Attributes:
        onnx_bytes: The graph. Its packed initializers have no place in a file yet.
        values: What each of them is made of, by its name.
        count: How many attentions read a packed product.
    """

    onnx_bytes: bytes = field(repr=False)
    values: dict[str, SideBySide]
    count: int


@dataclass(frozen=True)
class _Sum:
    """An Add behind a product: of a bias, which is an initializer, or of a term."""

    node: onnx.NodeProto
    added: str
    is_bias: bool


@dataclass(frozen=True)
class _Product:
    """One of queries, keys and values: ``x W``, and what is added to it, in order."""

    node: onnx.NodeProto
    sums: tuple[_Sum, ...]
    dequantize: onnx.NodeProto | None

    @property
    def kind(self) -> tuple[object, ...]:
        """The properties that products to be packed have in common."""
        scheme = attributes_of(self.dequantize) if self.dequantize is not None else None
        return self.node.input[0], tuple(each.is_bias for each in self.sums), scheme


def pack_products(onnx_bytes: bytes) -> PackedGraph:
    """Return a graph in which each attention that can reads one product; the same if none can.

    Args:
        onnx_bytes: A graph whose parameters have places in files.

    Raises:
        ExportDirectoryError: The graph cannot be parsed, or a place in it is not a range of bytes.
    """
    model = parse_onnx(onnx_bytes)
    index = IndexedGraph(model, {})
    packing = _Packing(model.graph, index)
    for at, node in enumerate(index.nodes):
        if node.op_type == _ATTENTION and all(node.input[:_PARTS]):
            products = [_product_of(name, index) for name in node.input[:_PARTS]]
            found = [each for each in products if each is not None]
            if len(found) == _PARTS and packing.can_pack(found):
                packing.pack(at, found)
    if not packing.count:
        return PackedGraph(onnx_bytes, {}, 0)
    packing.apply()
    written: bytes = model.SerializeToString(deterministic=True)
    return PackedGraph(written, packing.values, packing.count)


def _product_of(name: str, index: IndexedGraph) -> _Product | None:
    """Return the product that a value follows from; None if it follows from anything else."""
    sums: list[_Sum] = []
    while (node := _sole_producer(name, index)) is not None and node.op_type == "Add":
        name, added = node.input
        is_bias = index.is_initializer(added)
        if index.is_initializer(name):
            name, added, is_bias = added, name, True
        sums.insert(0, _Sum(node, added, is_bias))
    if node is None or node.op_type != "MatMul" or node.domain:
        return None
    weight = node.input[1]
    dequantize = index.producer(weight, "DequantizeLinear")
    if dequantize is None and not index.is_initializer(weight):
        return None
    return _Product(node, tuple(sums), dequantize)


def _sole_producer(name: str, index: IndexedGraph) -> onnx.NodeProto | None:
    if name in index.outputs or len(index.readers(name)) != 1:
        return None
    return index.producer(name)


class _Packing:
    """The products of a graph that become one; mutates the graph at the end.

    Attributes:
        values: What the packed initializers are made of.
        count: How many attentions read a packed product.
    """

    def __init__(self, graph: onnx.GraphProto, index: IndexedGraph) -> None:
        self.values: dict[str, SideBySide] = {}
        self.count = 0
        self._graph = graph
        self._index = index
        self._initializers = {each.name: each for each in graph.initializer}
        self._inputs = {each.name for each in graph.input}
        self._replaced: dict[int, list[onnx.NodeProto]] = {}
        self._renamed: dict[str, onnx.TensorProto] = {}
        self._gone: set[str] = set()

    def can_pack(self, products: Sequence[_Product]) -> bool:
        """Whether products are of one kind, and all of their values may stand side by side."""
        first = products[0]
        if any(each.kind != first.kind for each in products):
            return False
        if first.dequantize is not None and len(first.dequantize.input) != _DEQUANTIZED:
            return False
        return all(self._fit(names) for names in _groups(products))

    def _fit(self, names: Sequence[str]) -> bool:
        """Whether initializers have one reader each, a dtype and rows in common, and whole rows."""
        tensors = [self._initializers.get(name) for name in names]
        known = [each for each in tensors if each is not None]
        if len(known) != len(names) or self._inputs.intersection(names):
            return False
        if any(len(self._index.readers(name)) != 1 for name in names):
            return False
        if any(each.data_location != TensorProto.EXTERNAL for each in known):
            return False
        first = known[0]
        halves = first.data_type in _HALF_BYTES
        return all(
            each.data_type == first.data_type
            and each.dims[:-1] == first.dims[:-1]
            and not (halves and each.dims[-1] % 2)
            for each in known
        )

    def pack(self, at: int, products: Sequence[_Product]) -> None:
        """Let the attention at a place read one product."""
        attention = onnx.NodeProto()
        attention.CopyFrom(self._index.nodes[at])
        stem = f"{attention.output[0]}.qkv"
        first = products[0]
        nodes: list[onnx.NodeProto] = []
        weight = f"{stem}.weight"
        if first.dequantize is None:
            self._join([each.node.input[1] for each in products], weight)
        else:
            made = onnx.NodeProto()
            made.CopyFrom(first.dequantize)
            made.name, made.output[0] = f"{weight}.DequantizeLinear", weight
            for place, suffix in enumerate((".quantized", ".scale")):
                made.input[place] = f"{weight}{suffix}"
                names = [each.dequantize.input[place] for each in products if each.dequantize]
                self._join(names, made.input[place])
            nodes.append(made)
        value = f"{stem}.product"
        nodes.append(_node("MatMul", [first.node.input[0], weight], value))
        for number, sums in enumerate(zip(*(each.sums for each in products), strict=True)):
            added = f"{stem}.added.{number}"
            names = [each.added for each in sums]
            if sums[0].is_bias:
                self._join(names, added)
            else:
                nodes.append(_node("Concat", names, added, axis=-1))
            nodes.append(_node("Add", [value, added], f"{stem}.sum.{number}"))
            value = f"{stem}.sum.{number}"
        attention.input[0], attention.input[1], attention.input[2] = value, "", ""
        self._replaced[at] = [*nodes, attention]
        for each in products:
            self._drop(each)
        self.count += 1

    def _join(self, names: Sequence[str], packed: str) -> None:
        """Let one initializer, at the place of the first, take the places of several."""
        tensors = [self._initializers[name] for name in names]
        dims = list(tensors[0].dims)
        made = TensorProto(name=packed, data_type=tensors[0].data_type)
        made.dims.extend([*dims[:-1], sum(each.dims[-1] for each in tensors)])
        made.data_location = TensorProto.EXTERNAL
        rows = dims[0] if len(dims) > 1 else 1
        self.values[packed] = SideBySide(tuple(map(external_source, tensors)), rows)
        self._renamed[names[0]] = made
        self._gone.update(names[1:])

    def _drop(self, product: _Product) -> None:
        for node in (product.dequantize, product.node, *(each.node for each in product.sums)):
            if node is not None:
                self._replaced[self._index.place(node.output[0])] = []

    def apply(self) -> None:
        """Change the graph."""
        replace_nodes(self._graph, self._replaced)
        kept = [
            self._renamed.get(each.name, each)
            for each in self._graph.initializer
            if each.name not in self._gone
        ]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        made = {name for node in self._graph.node for name in node.output}
        shapes = [each for each in self._graph.value_info if each.name in made]
        del self._graph.value_info[:]
        self._graph.value_info.extend(shapes)


def _groups(products: Sequence[_Product]) -> Iterator[list[str]]:
    """Yield the initializers that would stand side by side."""
    if products[0].dequantize is None:
        yield [each.node.input[1] for each in products]
    else:
        for place in range(_DEQUANTIZED):
            yield [each.dequantize.input[place] for each in products if each.dequantize]
    for sums in zip(*(each.sums for each in products), strict=True):
        if sums[0].is_bias:
            yield [each.added for each in sums]


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=output, **attributes)
