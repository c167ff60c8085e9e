"""Graphs made by hand of a node or two, for what is asked about single operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["axes_of", "graph", "node"]

FLOAT = TensorProto.FLOAT


def node(operator: str, inputs: Sequence[str], *, name: str = "n", **settings: Any) -> Any:
    outputs = settings.pop("outputs", ["y"])
    return helper.make_node(operator, list(inputs), outputs, name=name, **settings)


def graph(
    nodes: Sequence[Any],
    *,
    kind: int = FLOAT,
    out: int | None = None,
    shape: Sequence[Any] = ("batch", 8),
    weights: Sequence[TensorProto] = (),
    inputs: Sequence[Any] = (),
    opset: int = 20,
    functions: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> bytes:
    """Return a graph from ``x`` to ``y``."""
    x = helper.make_tensor_value_info("x", kind, list(shape))
    y = helper.make_tensor_value_info("y", kind if out is None else out, None)
    made = helper.make_graph(list(nodes), "main", [x, *inputs], [y], list(weights))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(made, opset_imports=imports, functions=list(functions))
    data: bytes = model.SerializeToString()
    return data


def axes_of(name: str, values: Sequence[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)
