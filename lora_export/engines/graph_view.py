"""A graph as the preflight checks read it: nodes with types, ranks and constants.

Bodies of ``If`` and ``Loop`` and functions of the model itself are walked too, because the parser
reads them as it reads the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import onnx

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["ONNX_DOMAINS", "GraphView", "PlacedNode", "Scope", "tensor_type", "type_name", "view"]

ONNX_DOMAINS: Final = frozenset({"", "ai.onnx"})
_MAX_DEPTH: Final = 50
_GRAPH: Final = onnx.AttributeProto.GRAPH


@dataclass(frozen=True)
class Scope:
    """The known types, ranks and constants of the values that nodes read.

    Attributes:
        types: ``TensorProto.DataType`` of each, where it is known.
        ranks: The number of axes of each, where it is known.
        constants: Those whose value is in the file.
    """

    types: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PlacedNode:
    """A node and what surrounds it."""

    node: onnx.NodeProto
    scope: Scope
    opset: int

    @property
    def name(self) -> str:
        """The node's name, or what it computes."""
        return self.node.name or next(iter(self.node.output), self.node.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute."""
        for each in self.node.attribute:
            if each.name == name:
                return onnx.helper.get_attribute_value(each)
        return default

    def input(self, at: int) -> str:
        """Return the name of an input; ``""`` where it is left out."""
        return self.node.input[at] if at < len(self.node.input) else ""

    def output(self, at: int) -> str:
        """Return the name of an output; ``""`` where it is left out."""
        return self.node.output[at] if at < len(self.node.output) else ""


@dataclass(frozen=True)
class GraphView:
    """A graph to be checked.

    Attributes:
        model: It; of optional inputs, the defaults are taken out.
        opset: Of ONNX's own domain.
        nodes: All nodes, in order, those of bodies and of called functions after the main graph's.
        functions: ``(domain, name)`` of the functions that the model itself defines.
    """

    model: onnx.ModelProto = field(repr=False)
    opset: int
    nodes: tuple[PlacedNode, ...] = field(repr=False)
    functions: frozenset[tuple[str, str]]

    @property
    def types(self) -> dict[str, int]:
        """The ``TensorProto.DataType`` of every value, where it is known."""
        scopes = {id(each.scope): each.scope for each in self.nodes}
        return {name: kind for scope in scopes.values() for name, kind in scope.types.items()}


def view(model: onnx.ModelProto) -> GraphView:
    """Return `model` with the types and ranks of its values, as ONNX infers them.

    Args:
        model: A graph without optional inputs, as `lora_export.graph.adapters.required_inputs`
            makes it.

    Raises:
        UnsupportedError: Its bodies are nested deeper than can be walked.
    """
    inferred = _inferred(model)
    opset = _opset_of(model.opset_import)
    nodes = list(_walk(inferred.graph, Scope(), opset, 0))
    called = {(node.node.domain, node.node.op_type) for node in nodes}
    functions = {(each.domain, each.name): each for each in model.functions}
    for key, function in functions.items():
        if key in called:
            own = _opset_of(function.opset_import) or opset
            nodes += [PlacedNode(node, Scope(), own) for node in function.node]
    return GraphView(model, opset, tuple(nodes), frozenset(functions))


def tensor_type(value: onnx.ValueInfoProto) -> int:
    """Return the ``TensorProto.DataType`` of a value; 0 where it is not a tensor or not known."""
    kind: int = value.type.tensor_type.elem_type
    return kind


def type_name(kind: int) -> str:
    """Return ONNX's word for a ``TensorProto.DataType``, or its number where it has none."""
    try:
        return str(onnx.TensorProto.DataType.Name(kind))
    except ValueError:
        return f"type {kind}"


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the types of its values; as it is where they cannot be inferred."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001  (operators of other domains, damage: less is known then)
        return model


def _opset_of(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return next((each.version for each in imports if each.domain in ONNX_DOMAINS), 0)


def _walk(graph: onnx.GraphProto, outer: Scope, opset: int, depth: int) -> Iterator[PlacedNode]:
    if depth > _MAX_DEPTH:
        msg = f"the graph nests its bodies deeper than {_MAX_DEPTH}"
        raise UnsupportedError(msg, hint="Export it again without such control flow.")
    scope = _scope(graph, outer)
    for node in graph.node:
        yield PlacedNode(node, scope, opset)
    for node in graph.node:
        for each in node.attribute:
            if each.type == _GRAPH:
                yield from _walk(each.g, scope, opset, depth + 1)


def _scope(graph: onnx.GraphProto, outer: Scope) -> Scope:
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: kind for value in values if (kind := tensor_type(value))}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    types |= {each.name: each.data_type for each in graph.initializer}
    ranks |= {each.name: len(each.dims) for each in graph.initializer}
    constants = {each.name for each in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return Scope(
        {**outer.types, **types},
        {**outer.ranks, **ranks},
        outer.constants.union(constants),
    )
