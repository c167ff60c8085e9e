"""The layers that were not traced, copied from those that were.

`lora_export.graph.trace.repeated_layers` has left layers out of the model,
`lora_export.graph.optimize.layer_parts` has found that those of one kind are copies of each other
in the graph: every one but for the names of its parameters and of its cache, and for what it takes
over from the layer before it, which depends on that layer's kind alone. A layer that was left out
is one more such copy. Between which two layers it lies says the model; what it takes over from the
one before, and what the one behind takes over from it, was seen where two traced layers of the same
kinds follow each other.

A copy gets inputs and outputs of its own for its cache, put where the layer's number says.
Whatever differs means that the layers are not stamped, and the whole model has to be traced.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from lora_export.graph.optimize.layer_parts import Place, cut, in_layer, starts_of
from lora_export.graph.spec.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.optimize.layer_parts import Part, Read
    from lora_export.graph.spec.repeat import Repeat

__all__ = ["replicate_layers"]


def replicate_layers(
    model: ir.Model, parameters: Sequence[Parameter], repeats: Sequence[Repeat]
) -> tuple[Parameter, ...]:
    """Put the layers that were left out back into `model`; return all parameters, sorted by name.

    Args:
        model: The folded graph with the layers that were traced, numbered from 0; mutated.
        parameters: Its parameters.
        repeats: The lists of layers; one that `model` does not read is passed over.

    Raises:
        NotRepeatingError: Layers of a kind differ; `model` is of no further use.
    """
    table = {parameter.name: parameter for parameter in parameters}
    for repeat in repeats:
        table = _stamp_list(model.graph, table, repeat)
    return tuple(sorted(table.values(), key=lambda parameter: parameter.name))


def _stamp_list(
    graph: ir.Graph, table: dict[str, Parameter], repeat: Repeat
) -> dict[str, Parameter]:
    table = _renumber_parameters(graph, table, repeat)
    nodes = list(graph)
    starts = starts_of(nodes, repeat)
    if not starts:
        return table
    if _have_cache(nodes[starts[1] : starts[2]]):
        _renumber_cache(graph, repeat)
    found = cut(nodes, repeat, starts)
    first_nodes = dict(zip(repeat.kept, (nodes[start] for start in starts), strict=True))
    previous: dict[Place, ir.Value] = {}
    for number in range(1, len(repeat.kinds) - 1):
        kind = repeat.kinds[number]
        inter_layer_values = found.inter_layer_values.get((repeat.kinds[number - 1], kind), {})
        if number in found.parts:
            part = found.parts[number]
            if number - 1 not in repeat.kept:
                for (at, position), place in inter_layer_values.items():
                    part.nodes[at].replace_input_with(position, previous[place])
            previous = {place: value for value, place in part.places.items()}
            continue
        following = min(each for each in repeat.kept if each > number)
        part = found.models[kind]
        copy = _Copy(graph, part, number, repeat.path, following)
        taken = {read: previous[place] for read, place in inter_layer_values.items()}
        previous = copy.inserted(taken, before=first_nodes[following])
        table |= {
            copy.prefix + name.removeprefix(part.prefix): _renamed(parameter, copy.rename)
            for name, parameter in list(table.items())
            if name.startswith(part.prefix)
        }
    return table


class _Copy:
    """One layer that was left out, made after one that was traced."""

    def __init__(self, graph: ir.Graph, part: Part, number: int, path: str, following: int) -> None:
        self.prefix = f"{path}.{number}."
        self._graph = graph
        self._part = part
        self._number = number
        self._following = following

    def rename(self, name: str) -> str:
        """Return the name of this layer's counterpart of a parameter."""
        if not name.startswith(self._part.prefix):
            return name
        return self.prefix + name.removeprefix(self._part.prefix)

    def inserted(self, taken: dict[Read, ir.Value], before: ir.Node) -> dict[Place, ir.Value]:
        """Insert the layer's nodes; return its values by place; mutates the graph.

        Args:
            taken: What it takes over from the layer before it.
            before: The node that the layer's are put before.
        """
        values: dict[Place, ir.Value] = {}
        copies: list[ir.Node] = []
        for at, node in enumerate(self._part.nodes):
            inputs = [
                taken[at, position] if (at, position) in taken else self._counterpart(value, values)
                for position, value in enumerate(node.inputs)
            ]
            copy = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
                version=node.version,
                name=f"{node.name}.{self._number}",
            )
            for at_output, (value, source) in enumerate(
                zip(copy.outputs, node.outputs, strict=True)
            ):
                value.name = f"{source.name}.{self._number}"
                values[at, at_output] = value
            copies.append(copy)
        self._graph.insert_before(before, copies)
        for name, place in self._part.returned.items():
            self._put(self._graph.outputs, PRESENT, name, self._part.at(place), values[place])
        return values

    def _counterpart(
        self, value: ir.Value | None, values: dict[Place, ir.Value]
    ) -> ir.Value | None:
        """Return the value that this layer reads where the other layer reads `value`."""
        if value is None:
            return None
        if value in self._part.places:
            return values[self._part.places[value]]
        name = value.name or ""
        if value.is_initializer() and name.startswith(self._part.prefix):
            return _initializer(self._graph, value, self.rename(name))
        cached = in_layer(value, PAST, self._part.number)
        if cached is None:
            return value
        wanted = f"{PAST}{self._number}.{cached}"
        for each in self._graph.inputs:
            if each.name == wanted:
                return each
        return self._put(self._graph.inputs, PAST, cached, value, ir.Value())

    def _put(
        self,
        values: MutableSequence[ir.Value],
        start: str,
        name: str,
        like: ir.Value,
        value: ir.Value,
    ) -> ir.Value:
        """Put `value` among inputs or outputs, before those of the following layer's like it."""
        value.name = f"{start}{self._number}.{name}"
        value.shape, value.type = like.shape, like.type
        group = f"{start}{self._following}.{''.join(name.rpartition('.')[:2])}"
        place = next(i for i, each in enumerate(values) if (each.name or "").startswith(group))
        values.insert(place, value)
        return value


def _have_cache(nodes: Sequence[ir.Node]) -> bool:
    """Whether `nodes`, of the second layer, read or return a layer's cache."""
    return any(
        (value is not None and in_layer(value, start, 1) is not None)
        for node in nodes
        for start, values in ((PAST, node.inputs), (PRESENT, node.outputs))
        for value in values
    )


def _renumber_cache(graph: ir.Graph, repeat: Repeat) -> None:
    """Give the cache inputs and outputs the layers' numbers in the whole model; mutates."""
    for value in (*graph.inputs, *graph.outputs):
        for start in (PAST, PRESENT):
            number, dot, what = (value.name or "").removeprefix(start).partition(".")
            if (value.name or "").startswith(start):
                value.name = f"{start}{repeat.kept[int(number)]}{dot}{what}"


def _renumber_parameters(
    graph: ir.Graph, table: dict[str, Parameter], repeat: Repeat
) -> dict[str, Parameter]:
    """Give the layers their numbers in the whole model; mutates `graph`, returns the new table."""
    pattern = re.compile(rf"{re.escape(repeat.path)}\.(\d+)\.")

    def rename(name: str) -> str:
        match = pattern.match(name)
        if match is None:
            return name
        return f"{repeat.path}.{repeat.kept[int(match[1])]}.{name[match.end() :]}"

    moved = [value for value in graph.initializers.values() if pattern.match(value.name or "")]
    for value in moved:
        graph.initializers.pop(value.name or "")
    for value in moved:
        value.name = rename(value.name or "")
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.initializers.add(value)
    described = (_renamed(parameter, rename) for parameter in table.values())
    return {parameter.name: parameter for parameter in described}


def _renamed(parameter: Parameter, rename: Callable[[str], str]) -> Parameter:
    """Return the same parameter of another layer."""
    return replace(
        parameter, name=rename(parameter.name), aliases=tuple(map(rename, parameter.aliases))
    )


def _initializer(graph: ir.Graph, like: ir.Value, name: str) -> ir.Value:
    """Return the initializer called `name`, made after `like` where it is not there yet."""
    found = graph.initializers.get(name)
    if found is None:
        found = ir.Value(
            name=name, shape=like.shape, type=like.type, const_value=_named(like.const_value, name)
        )
        graph.initializers.add(found)
    return found


def _named(tensor: ir.TensorProtocol | None, name: str) -> ir.TensorProtocol | None:
    """Return a constant of the same value under another name (a buffer of the layer)."""
    return None if tensor is None else ir.Tensor(tensor.numpy(), name=name)
