"""A graph in bfloat16 as one that computes in float32, for a runtime without bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["in_float32"]


def in_float32(serialized: bytes) -> bytes:
    """Return a graph with every bfloat16 made float32: values, constants, casts, initializers.

    Constants keep the values that bfloat16 rounded them to. Initializers in other files are only
    declared float32; who writes the file has to write them so.
    """
    model = onnx.load_model_from_string(serialized)
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.BFLOAT16:
                kind.elem_type = TensorProto.FLOAT
        for tensor in graph.initializer:
            _widen(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    _widen(attribute.t)
                names_dtype = attribute.name in {"to", "dtype"} and attribute.type == 2  # noqa: PLR2004  (INT)
                if names_dtype and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _widen(tensor: Any) -> None:
    """Make a tensor float32 if it is bfloat16; mutates `tensor`."""
    if tensor.data_type != TensorProto.BFLOAT16:
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.data_type = TensorProto.FLOAT
        return
    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and those of its nodes' branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
