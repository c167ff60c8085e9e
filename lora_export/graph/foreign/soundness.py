"""The structure that every ONNX graph has: outputs of each node, and an order of the nodes.

Protobuf takes more than ONNX allows: nodes without outputs, values that two nodes make, nodes that
depend on each other. A rewrite that follows the values of such a graph fails or does not end.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from lora_export.graph.foreign.rewire import all_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

__all__ = ["structural_problem"]

_SHOWN: Final = 100


def structural_problem(model: onnx.ModelProto) -> str | None:
    """Return what is wrong with the structure of a model, or None.

    Case 1: a node has no output.
    Case 2: two nodes of a graph, or a node and an input, give a value the same name.
    Case 3: nodes depend on each other.
    """
    for graph in all_graphs(model.graph):
        made = {each.name for each in graph.input}
        for node in graph.node:
            if not any(node.output):
                return f"a node {node.op_type[:_SHOWN]!r} in it has no output"
            if not node.output[0] and node.op_type in {"Constant", "Identity"}:
                return f"a node {node.op_type!r} in it has an output without a name"
            for name in filter(None, node.output):
                if name in made:
                    return f"the value {name[:_SHOWN]!r} is made twice"
                made.add(name)
        if (name := _in_a_cycle(graph)) is not None:
            return f"its nodes depend on each other: {name[:_SHOWN]!r} is read by what makes it"
    return None


def _in_a_cycle(graph: onnx.GraphProto) -> str | None:
    """Return the output of a node that can never be computed, or None (Kahn's algorithm)."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[int, list[int]] = defaultdict(list)
    missing = [0] * len(graph.node)
    for index, node in enumerate(graph.node):
        needed = {maker[name] for name in _read_by(node) if name in maker}
        missing[index] = len(needed)
        for each in needed:
            readers[each].append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]
    while ready:
        for reader in readers[ready.pop()]:
            missing[reader] -= 1
            if missing[reader] == 0:
                ready.append(reader)
    return next(
        (next(filter(None, graph.node[at].output)) for at, count in enumerate(missing) if count),
        None,
    )


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, and those that the graphs in it read from outside."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            own = {each.name for each in (*graph.input, *graph.initializer)}
            own.update(name for inner in graph.node for name in inner.output)
            for inner in graph.node:
                yield from (name for name in _read_by(inner) if name not in own)
