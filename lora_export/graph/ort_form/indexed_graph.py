"""A graph with its nodes by the values that they make and read, for rewrites that look around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import helper, numpy_helper

from lora_export.graph.nodes.weight_uses import readers_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

__all__ = ["Axes", "IndexedGraph", "attributes_of", "replace_nodes"]

Axes = tuple["int | str | None", ...]

_SMALL: Final = 1 << 16
"""The bytes of a constant that is looked at; shapes, axes and numbers are far smaller."""


class IndexedGraph:
    """A graph as it stands; a change of its nodes makes the index stale.

    Attributes:
        nodes: Its nodes, in order.
        inputs: Its inputs by name; initializers that are inputs too are not among them.
        outputs: The names of its outputs, in order.
        shapes: The axes of each value whose rank is known: a size, or a symbol's name, or None.

    Args:
        model: The graph.
        shapes: The shapes of its values, where they are known: ONNX infers none behind operators
            that are not its own.
    """

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Axes] | None = None) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        initializers = {each.name: each for each in graph.initializer}
        self.inputs = {each.name: each for each in graph.input if each.name not in initializers}
        self.outputs = [each.name for each in graph.output]
        self.shapes = _shapes_of(model) if shapes is None else shapes
        self._initializers = initializers
        self._producers = {name: at for at, node in enumerate(self.nodes) for name in node.output}
        self._readers = readers_of(self.nodes)

    def producer(self, name: str, op_type: str | None = None) -> onnx.NodeProto | None:
        """Return the node that makes a value, if it is an `op_type` of ONNX's own operators."""
        at = self._producers.get(name)
        if at is None:
            return None
        node = self.nodes[at]
        return node if op_type is None or (node.op_type == op_type and not node.domain) else None

    def place(self, name: str) -> int:
        """Return the place of the node that makes a value; there is one."""
        return self._producers[name]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value."""
        return [self.nodes[at] for at in self._readers.get(name, ())]

    def only_reader(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """Return the one node that reads a value, if it is an `op_type`."""
        readers = self.readers(name)
        if len(readers) != 1 or name in self.outputs or readers[0].op_type != op_type:
            return None
        return readers[0]

    def is_initializer(self, name: str) -> bool:
        """Whether a value is an initializer: a weight or a constant."""
        return name in self._initializers

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the value of a small constant that lies in the graph; None of anything else."""
        tensor = self._initializers.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        if name in self.inputs or tensor.ByteSize() > _SMALL:
            return None
        found: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
        return found

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return the integers of a constant (axes, a shape); None of anything else."""
        array = self.constant(name)
        if array is None or array.dtype.kind != "i":
            return None
        return tuple(int(each) for each in array.reshape(-1))


def _shapes_of(model: onnx.ModelProto) -> Mapping[str, Axes]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None
            for axis in value.type.tensor_type.shape.dim
        )
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return found | {each.name: tuple(each.dims) for each in model.graph.initializer}


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def replace_nodes(
    graph: onnx.GraphProto,
    replaced: Mapping[int, Sequence[onnx.NodeProto]],
    *,
    first: Sequence[onnx.NodeProto] = (),
) -> None:
    """Put other nodes in the places of some; mutates `graph`.

    Args:
        graph: The graph.
        replaced: The nodes for each place: those that go there, and the old one where it stays.
        first: Nodes that go before all others.
    """
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(first)
    for at, node in enumerate(nodes):
        graph.node.extend(replaced.get(at, (node,)))
