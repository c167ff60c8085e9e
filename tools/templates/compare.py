"""Graphs compared node by node: equal but for the counters in the names that tracing makes up.

A value or a node is called ``val_379`` by how many the exporter had before it, also of those that
are folded away later: sizes that are equal shift the count, and so do layers that are stamped out
where a trace has them all. Nodes may then also be in another order, which means nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.templates.numbers import is_outside

if TYPE_CHECKING:
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["same_computation", "same_graphs"]


def same_graphs(one: GraphTemplate, other: GraphTemplate) -> bool:
    """Whether two templates are equal, all but the names of constants, values and nodes."""
    return one.describe() == other.describe() and all(
        (a is None) == (b is None) and (a is None or b is None or _renamed(a) == _renamed(b))
        for a, b in zip(one.graphs, other.graphs, strict=True)
    )


def same_computation(one: GraphTemplate, other: GraphTemplate) -> bool:
    """Whether two templates are equal, all but names and order: outputs are of the same nodes."""
    return one.describe() == other.describe() and all(
        (a is None) == (b is None) and (a is None or b is None or _outputs(a) == _outputs(b))
        for a, b in zip(one.graphs, other.graphs, strict=True)
    )


def _outputs(onnx_bytes: bytes) -> list[bytes]:
    """Return inputs and outputs of a graph, these with a hash of all that they follow from."""
    graph = parse_onnx(onnx_bytes).graph
    hashes = {"": b""} | {value.name: value.name.encode() for value in graph.input}
    for tensor in graph.initializer:
        name = tensor.name
        if not is_outside(tensor):
            tensor.ClearField("name")
        hashes[name] = _hash(tensor.SerializeToString(deterministic=True))
    for node in graph.node:
        read = [hashes[name] for name in node.input]
        written = list(node.output)
        for field in ("name", "input", "output"):
            node.ClearField(field)
        own = _hash(node.SerializeToString(deterministic=True), *read)
        hashes |= {name: _hash(own, str(at).encode()) for at, name in enumerate(written) if name}
    inputs = [value.SerializeToString(deterministic=True) for value in graph.input]
    return inputs + [
        value.SerializeToString(deterministic=True) + hashes[value.name] for value in graph.output
    ]


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _renamed(onnx_bytes: bytes) -> bytes:
    """Return a graph whose constants, values and nodes are named by where they are first read."""
    model = parse_onnx(onnx_bytes)
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    kept |= {each.name for each in graph.initializer if is_outside(each)}
    names = {name: name for name in (*kept, "")}
    for number, node in enumerate(graph.node):
        node.name = str(number)
        node.input[:] = [names.setdefault(name, f"#{len(names)}") for name in node.input]
        node.output[:] = [names.setdefault(name, f"#{len(names)}") for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    initializers = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    renamed: bytes = model.SerializeToString(deterministic=True)
    return renamed
