"""A float16 graph whose inputs and outputs are float32, the cache left out.

transformers.js feeds float32 and reads the numbers of an output as they lie: those of float16 would
be taken for integers. The keys and values of past positions go in as they came out, and stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.graph.foreign.rewire import rename_values
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["with_float32_interface"]

_HALF: Final = ".float16"


def with_float32_interface(onnx_bytes: bytes) -> bytes:
    """Return a graph with float32 in place of float16 inputs and outputs; same input, same bytes.

    Args:
        onnx_bytes: A graph; one without float16 inputs and outputs is returned as it is.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
    """
    model = parse_onnx(onnx_bytes)
    graph = model.graph
    inputs, outputs = _halves(graph.input), _halves(graph.output)
    if not inputs and not outputs:
        return onnx_bytes
    rename_values(graph, {each.name: f"{each.name}{_HALF}" for each in (*inputs, *outputs)})
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    for value in (*inputs, *outputs):
        half = value.name
        value.name = half.removesuffix(_HALF)
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in inputs:
        half = f"{value.name}{_HALF}"
        before.append(_cast(value.name, half, onnx.TensorProto.FLOAT16))
    for value in outputs:
        half = f"{value.name}{_HALF}"
        after.append(_cast(half, value.name, onnx.TensorProto.FLOAT))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *rest, *after])
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _halves(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    return [
        each
        for each in values
        if each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        and not each.name.startswith((PAST, PRESENT))
    ]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}.cast", to=to)
