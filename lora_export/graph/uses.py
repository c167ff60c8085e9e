"""Where and how the nodes of an ONNX graph read a weight, so that a term can be added to it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.base.errors import ExportDirectoryError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.base.parameters import Parameter

__all__ = ["INPUT_FIRST_TYPES", "Use", "parsed", "readers_of", "unsupported", "use_of"]

INPUT_FIRST_TYPES: Final = frozenset({"Conv1D", "Embedding"})
"""Modules whose weight is ``[in, out]`` in the model."""

_MATRIX: Final = 2
_HINT: Final = "Leave the module out, or export merged graphs: --mode merged."


def parsed(onnx_bytes: bytes) -> onnx.ModelProto:
    """Return the model; `ExportDirectoryError` where it cannot be parsed."""
    try:
        return onnx.load_model_from_string(onnx_bytes)
    except Exception as error:
        msg = f"the graph is not a readable ONNX model: {error}"
        raise ExportDirectoryError(msg, hint="The file is damaged; export again.") from error


@dataclass(frozen=True)
class Use:
    """One place where a weight is read.

    Attributes:
        at: The position of the node whose output the term is added to.
        x: What is multiplied by the weight, or the indices into it.
        gather: Whether rows are looked up instead of multiplied.
        bias: The bias in that output; "" without one.
    """

    at: int
    x: str
    gather: bool = False
    bias: str = ""


def readers_of(nodes: Sequence[onnx.NodeProto]) -> defaultdict[str, list[int]]:
    """Return the positions of the nodes that read each value, subgraphs included."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for at, node in enumerate(nodes):
        for name in dict.fromkeys(_inputs_of(node)):
            found[name].append(at)
    return found


def _inputs_of(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _inputs_of(inner)


def use_of(nodes: Sequence[onnx.NodeProto], at: int, parameter: Parameter) -> Use:
    """Return how the node at `at` reads a weight."""
    node, name = nodes[at], parameter.name
    if parameter.name.rpartition(".")[2] != "weight" or len(parameter.shape) != _MATRIX:
        raise unsupported(parameter, "it is not the matrix of a module")
    input_first = (parameter.module_type in INPUT_FIRST_TYPES) != parameter.transposed
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    inputs = list(node.input)
    if node.op_type == "MatMul" and inputs.index(name) == 1 and input_first:
        return Use(at, inputs[0])
    if node.op_type == "Gemm" and inputs.index(name) == 1 and _plain_gemm(attributes):
        if bool(attributes.get("transB", 0)) == input_first:
            raise unsupported(parameter, "Gemm reads it the other way round")
        return Use(at, inputs[0], bias=inputs[2] if len(inputs) > _MATRIX else "")
    looked_up = parameter.module_type == "Embedding" and attributes.get("axis", 0) == 0
    if node.op_type == "Gather" and inputs[0] == name and input_first and looked_up:
        return Use(at, inputs[1], gather=True)
    raise unsupported(parameter, f"it is read by {node.op_type} ({node.output[0]!r})")


def _plain_gemm(attributes: Mapping[str, object]) -> bool:
    return (
        not attributes.get("transA", 0)
        and attributes.get("alpha", 1.0) == 1.0
        and attributes.get("beta", 1.0) == 1.0
    )


def unsupported(parameter: Parameter, why: str) -> UnsupportedError:
    """Return the error for a parameter that adapters cannot share a graph for."""
    msg = f"{parameter.name!r} ({parameter.module_type}) cannot be swapped or batched: {why}"
    return UnsupportedError(msg, hint=_HINT)
