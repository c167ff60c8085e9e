"""Small edits of a parsed ONNX model: names defined, values renamed, tensors lifted.

A model's names are unique across its graph and the subgraphs in it (SSA, ONNX IR specification), so
that a rename holds everywhere. Two branches of one ``If`` may use a name each for themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "all_graphs",
    "defined_names",
    "fresh_name",
    "lift_tensors",
    "rename_values",
    "split_identities",
]


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and every graph inside its nodes, outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from all_graphs(inner)


def defined_names(model: onnx.ModelProto) -> Counter[str]:
    """Count in how many graphs and nodes each name is given to a value, subgraphs included."""
    names: Counter[str] = Counter()
    for graph in all_graphs(model.graph):
        given = {value.name for value in graph.input} | {each.name for each in graph.initializer}
        names.update(given)
        names.update(name for node in graph.node for name in node.output if name)
    return names


def rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values in `graph` and all graphs in it, all at once; mutates `graph`."""
    for each in all_graphs(graph):
        for node in each.node:
            for field in (node.input, node.output):
                field[:] = [names.get(name, name) for name in field]
        for value in (*each.initializer, *each.input, *each.output, *each.value_info):
            value.name = names.get(value.name, value.name)
        for annotation in each.quantization_annotation:
            annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)


def lift_tensors(model: onnx.ModelProto, wanted: Callable[[onnx.TensorProto], bool]) -> None:
    """Make initializers of the main graph of what `wanted` chooses; mutates `model`.

    Case 1: a ``Constant`` node of the main graph.
    Case 2: a ``Constant`` node or an initializer of a subgraph, which sees the main graph's values.
    What a graph returns as it is stays: an output has to be computed where it is returned.
    """
    names = defined_names(model)
    for graph in list(all_graphs(model.graph)):
        returned = {value.name for value in graph.output}
        found: list[onnx.TensorProto] = []
        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            tensor = _constant_of(node)
            if tensor is None or node.output[0] in returned or not wanted(tensor):
                kept.append(node)
                continue
            found.append(_named(tensor, node.output[0]))
        if found:
            _replace_nodes(graph, kept)
        if graph is not model.graph:
            for own in [each for each in graph.initializer if each.name not in returned]:
                if wanted(own):
                    found.append(_named(own, own.name))
                    graph.initializer.remove(own)
        for tensor in found:
            if names[tensor.name] > 1:
                fresh = fresh_name(tensor.name, names)
                rename_values(graph, {tensor.name: fresh})
                tensor.name = fresh
            model.graph.initializer.append(tensor)


def _constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a ``Constant`` node, if that is what `node` is."""
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"}:
        return None
    return next((each.t for each in node.attribute if each.name == "value"), None)


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Return a copy of `tensor` under another name."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make `nodes`, some of the graph's own, all that it has; mutates `graph`."""
    other = onnx.GraphProto()
    other.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(other.node)


def fresh_name(name: str, names: Counter[str]) -> str:
    """Return a name that nothing has yet, and take it."""
    index = 1
    while names[f"{name}.{index}"]:
        index += 1
    names[f"{name}.{index}"] += 1
    return f"{name}.{index}"


def split_identities(graph: onnx.GraphProto) -> None:
    """Give each ``Identity`` of an initializer an initializer of its own; mutates `graph`.

    The TorchScript exporter stores parameters of equal value once, and an ``Identity`` for every
    other, under that parameter's name: an adapter may change one of them and not the others.
    """
    initializers = {each.name: each for each in graph.initializer}
    returned = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        plain = node.op_type == "Identity" and node.domain in {"", "ai.onnx"}
        source = initializers.get(node.input[0]) if plain and node.input else None
        if source is None or node.output[0] in returned:
            kept.append(node)
            continue
        copy = _named(source, node.output[0])
        initializers[copy.name] = copy
        graph.initializer.append(copy)
    if len(kept) < len(graph.node):
        _replace_nodes(graph, kept)
