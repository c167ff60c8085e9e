"""Graphs compared node by node: equal but for the counters in the names that tracing makes up.

A value or a node is called ``val_379`` by how many the exporter had before it, also of those that
are folded away later: sizes that are equal shift the count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.templates.numbers import is_outside

if TYPE_CHECKING:
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["same_graphs"]


def same_graphs(one: GraphTemplate, other: GraphTemplate) -> bool:
    """Whether two templates are equal, all but the names of constants, values and nodes."""
    return one.describe() == other.describe() and all(
        (a is None) == (b is None) and (a is None or b is None or _renamed(a) == _renamed(b))
        for a, b in zip(one.graphs, other.graphs, strict=True)
    )


def _renamed(onnx_bytes: bytes) -> bytes:
    """Return a graph whose constants, values and nodes are named by their order."""
    model = parse_onnx(onnx_bytes)
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    kept |= {each.name for each in graph.initializer if is_outside(each)}
    names = {name: name for name in (*kept, "")}
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"#{len(names)}")
    for number, node in enumerate(graph.node):
        node.name = str(number)
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names.setdefault(name, f"#{len(names)}") for name in node.output]
    renamed: bytes = model.SerializeToString(deterministic=True)
    return renamed
