"""Parts of a graph: the nodes and initializers that some of its values follow from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.graph.nodes.weight_uses import inputs_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import onnx

__all__ = ["keep_outputs", "nodes_behind", "read_by"]


def nodes_behind(
    graph: onnx.GraphProto, wanted: Iterable[str], *, stop_at: Collection[str] = ()
) -> list[onnx.NodeProto]:
    """Return the nodes that the values `wanted` follow from, in the graph's order.

    Args:
        graph: The graph; its nodes are in an order in which they can be run.
        wanted: Names of values.
        stop_at: Names of values that are taken as given: what they follow from is left out.
    """
    needed = set(wanted) - set(stop_at)
    found: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            found.append(node)
            needed.update(name for name in inputs_of(node) if name not in stop_at)
    return found[::-1]


def read_by(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names that `nodes` read and that none of them makes."""
    kept = list(nodes)
    made = {name for node in kept for name in node.output}
    return {name for node in kept for name in inputs_of(node) if name and name not in made}


def keep_outputs(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Reduce a graph to the outputs `names` and what they follow from; mutates `graph`.

    The inputs stay as they are, read or not.
    """
    nodes = nodes_behind(graph, names)
    values = read_by(nodes) | set(names)
    made = {name for node in nodes for name in node.output}
    kept = [each for each in graph.output if each.name in names]
    _replace(graph.output, kept)
    _replace(graph.initializer, [each for each in graph.initializer if each.name in values])
    _replace(graph.value_info, [each for each in graph.value_info if each.name in made])
    _replace(graph.node, nodes)


def _replace(field: Any, kept: list[Any]) -> None:
    """Make `kept`, some of what a repeated field holds, all that it holds."""
    del field[:]
    field.extend(kept)
