"""A graph adjusted to a head of another width.

    … → MatMul or Gemm with the head's weight → Reshape, Add, Mul, Tanh, … → output

What follows the head works on any width, but for the target of a ``Reshape`` or ``Expand``
(``[batch, sequence, 128]``: a tied head is a ``Gemm`` of rows) and constants of that width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import numpy_helper

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

__all__ = ["set_output_width"]

_SHAPED: Final = frozenset({"Reshape", "Expand"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv"})


def set_output_width(
    model: onnx.ModelProto, before: int, after: int, parameters: AbstractSet[str]
) -> None:
    """Give the last axis of the first output another size; mutates `model`.

    Args:
        model: The graph; the shapes of its parameters are the new ones already.
        before: The size that the axis has.
        after: The size that it gets.
        parameters: The initializers whose shapes changed.

    Raises:
        UnsupportedError: A constant behind the head has values for the old width only.
    """
    graph = model.graph
    del graph.value_info[:]  # shapes behind the head are of its old width
    axes = graph.output[0].type.tensor_type.shape.dim
    axes[-1].Clear()
    axes[-1].dim_value = after
    if before == after:
        return
    constants = _Constants(graph)
    for node in _behind_head(graph, parameters):
        if node.op_type in _SHAPED:
            constants.replace(node.input[1], before, after)
        for name in node.input:
            if name not in parameters and constants.width_of(name) == before:
                msg = (
                    f"the graph has a constant of the width {before} after its head ({name!r}), "
                    f"and the adapter's head is {after} wide"
                )
                raise UnsupportedError(
                    msg, hint="Merge into a checkpoint (merge), and export that one."
                )


def _behind_head(graph: onnx.GraphProto, parameters: AbstractSet[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes from the first output back to the products with the head's weight."""
    producers = {name: node for node in graph.node for name in node.output}
    waiting, seen = [graph.output[0].name], set()
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in _PRODUCTS and not parameters.isdisjoint(node.input):
            continue
        yield node
        waiting.extend(node.input[:1] if node.op_type in _SHAPED else node.input)


class _Constants:
    """The integer constants of a graph, as initializers and as ``Constant`` nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._initializers: dict[str, onnx.TensorProto] = {
            each.name: each for each in graph.initializer
        }
        self._producers = {name: node for node in graph.node for name in node.output}

    def width_of(self, name: str) -> int | None:
        """Return the last axis of a constant of floating numbers; None for anything else."""
        tensor = self._tensor(name)
        if tensor is None or tensor.data_type == onnx.TensorProto.INT64 or not tensor.dims:
            return None
        return int(tensor.dims[-1])

    def replace(self, name: str, before: int, after: int) -> None:
        """Put `after` for the last `before` in a constant shape; mutates the graph.

        A constant that other nodes read too is replaced with its new value for them all: it has
        the width of the same head.
        """
        node = self._producers.get(name)
        if node is not None and node.op_type == "Concat":
            self.replace(node.input[-1], before, after)
            return
        tensor = self._tensor(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.INT64:
            return
        values = numpy_helper.to_array(tensor).copy()
        if values.size and values.reshape(-1)[-1] == before:
            values.reshape(-1)[-1] = after
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))

    def _tensor(self, name: str) -> onnx.TensorProto | None:
        if name in self._initializers:
            return self._initializers[name]
        node = self._producers.get(name)
        values = node.attribute if node is not None and node.op_type == "Constant" else ()
        tensors: list[onnx.TensorProto] = [each.t for each in values if each.name == "value"]
        return tensors[0] if tensors else None
