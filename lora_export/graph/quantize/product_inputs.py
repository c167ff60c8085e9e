"""The inputs of a graph's products: their names, and a graph that returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.core.quantization import INTEGERS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["ProductInput", "product_inputs", "with_outputs"]

_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})


@dataclass(frozen=True)
class ProductInput:
    """The input of a product with a parameter.

    Attributes:
        value: Its name in the graph.
        width: The size of its last axis.
    """

    value: str
    width: int


def product_inputs(graph: onnx.GraphProto, parameters: Collection[str]) -> dict[str, ProductInput]:
    """Return what each of some parameters is multiplied with, by the first node that does it.

    Args:
        graph: A graph, quantized or not.
        parameters: Names of parameters; those that no product reads are left out.
    """
    wanted = set(parameters)
    shapes = {each.name.removesuffix(INTEGERS): list(each.dims) for each in graph.initializer}
    found: dict[str, ProductInput] = {}
    for node in graph.node:
        name = node.input[1] if node.op_type in _PRODUCTS else ""
        if name in wanted and name in shapes and name not in found:
            turned = any(each.name == "transB" and each.i for each in node.attribute)
            found[name] = ProductInput(node.input[0], shapes[name][1 if turned else 0])
    return found


def with_outputs(model: onnx.ModelProto, values: Sequence[str], dtype: int) -> bytes:
    """Return a graph that returns some of its values, and nothing else.

    Args:
        model: The graph; it stays as it is.
        values: The values.
        dtype: Their dtype, as ONNX numbers it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(each, dtype, None) for each in values)
    data: bytes = copy.SerializeToString(deterministic=True)
    return data
