"""The places where nodes of an ONNX graph read a weight, and the nodes of a term added to it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from lora_export.core.parameters import Parameter

__all__ = [
    "ONE",
    "Use",
    "forget_shapes",
    "inputs_of",
    "node",
    "readers_of",
    "rescaled",
    "sizes_of",
    "stored_input_first",
    "unsupported",
    "use_of",
]

ONE: Final = "lora_one"

_INPUT_FIRST_TYPES: Final = frozenset({"Conv1D", "Embedding"})
"""Modules whose weight is ``[in, out]`` in the model."""

_MATRIX: Final = 2
_HINT: Final = "Leave the module out, or export merged graphs: --mode merged."


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


def sizes_of(parameter: Parameter) -> tuple[int, int]:
    """Return ``(in, out)`` of the matrix of a module.

    Raises:
        UnsupportedError: It is none: the kernel of a convolution.
    """
    if len(parameter.shape) != _MATRIX:
        raise unsupported(parameter, "it is not the matrix of a module")
    first, second = parameter.shape
    return (first, second) if parameter.module_type in _INPUT_FIRST_TYPES else (second, first)


def stored_input_first(parameter: Parameter) -> bool:
    """Whether products read the matrix as ``[in, out]``.

    They do where it is stored as four-bit floats, outputs first: its operator turns it.
    """
    if parameter.quantized is not None and parameter.quantized.floats is not None:
        return True
    return (parameter.module_type in _INPUT_FIRST_TYPES) != parameter.transposed


def node(kind: str, inputs: Sequence[str], output: str, *, to: int | None = None) -> onnx.NodeProto:
    """Return a node of one output, called after that."""
    made = helper.make_node(kind, inputs, [output], name=f"{output}.{kind}")
    if to is not None:
        made.attribute.append(helper.make_attribute("to", to))
    return made


def rescaled(updated: str, factor: str, bias: str, out: str) -> list[onnx.NodeProto]:
    """Return the nodes of DoRA's factor g: ``g ∘ z``, or ``z + (g - 1) ∘ (z - b)`` with a bias.

    The latter reads a scalar 1 called `ONE`.

    Args:
        updated: z, what the weight gives with its update.
        factor: g.
        bias: b, where it is in z; "" where not.
        out: The result.
    """
    if not bias:
        return [node("Mul", [updated, factor], out)]
    return [
        node("Sub", [factor, ONE], f"{out}.factor"),
        node("Sub", [updated, bias], f"{out}.product"),
        node("Mul", [f"{out}.product", f"{out}.factor"], f"{out}.rest"),
        node("Add", [updated, f"{out}.rest"], out),
    ]


def readers_of(nodes: Sequence[onnx.NodeProto]) -> defaultdict[str, list[int]]:
    """Return the positions of the nodes that read each value, subgraphs included."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for at, node in enumerate(nodes):
        for name in dict.fromkeys(inputs_of(node)):
            found[name].append(at)
    return found


def inputs_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node reads, and those that its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inputs_of(inner)


def forget_shapes(graph: onnx.GraphProto, changed: Collection[str]) -> None:
    """Remove what `graph` says of the shapes of values that follow from `changed`; mutates.

    The others stay: ONNX Runtime fuses more where it knows shapes.

    Args:
        graph: The graph, before anything else in it is changed.
        changed: Names of parameters that will have another shape.
    """
    following = set(changed)
    for each in graph.node:
        if any(name in following for name in inputs_of(each)):
            following.update(each.output)
    kept = [each for each in graph.value_info if each.name not in following]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def use_of(nodes: Sequence[onnx.NodeProto], at: int, parameter: Parameter) -> Use:
    """Return how the node at `at` reads a weight."""
    node, name = nodes[at], parameter.name
    if parameter.name.rpartition(".")[2] != "weight" or len(parameter.shape) != _MATRIX:
        raise unsupported(parameter, "it is not the matrix of a module")
    input_first = stored_input_first(parameter)
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


def unsupported(parameter: Parameter, why: str, *, hint: str = _HINT) -> UnsupportedError:
    """Return the error for a parameter that adapters cannot share a graph for."""
    msg = f"{parameter.name!r} ({parameter.module_type}) cannot be swapped or batched: {why}"
    return UnsupportedError(msg, hint=hint)
