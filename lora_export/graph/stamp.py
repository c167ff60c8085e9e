"""The layers that were not traced, stamped out of one that was.

The graph holds layers 0, 1, 2, 3 of a list, where 3 stands for the last one. It is cut where a
layer's parameters are read for the first time: *one* is what lies between the first readers of
layer 1 and of layer 2, *two* what lies between those of 2 and 3. If *two* is *one* with every name
of layer 1 replaced by that of layer 2, and what it takes over from *one* is what *one* took over
from before itself, then *two* may be followed by a copy of itself, and that by another: the graph
of any number of layers. Where a layer is cut does not matter, since the cuts are one period apart.

Compared are operators, attributes, and for each input whether it is

    1. the same value from before the layers (a mask, a rotary table), or an equal constant;
    2. the same place inside the part;
    3. the same parameter of the layer;
    4. what the part before hands over;
    5. the same cache input of the layer (``past_key_values.1.key`` to one, ``….2.key`` to two).

What a part returns as the layer's cache (``present.1.key``) must lie at the same place in both; a
copy gets inputs and outputs of its own, put where the layer's number says. Whatever differs means
that the layers are not stamped, and the whole model has to be traced.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lora_export.graph.layers import KEPT
from lora_export.graph.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import MutableSequence, Sequence

    from lora_export.base.parameters import Parameter
    from lora_export.graph.layers import Repeat

__all__ = ["NotRepeatingError", "stamp"]

_Place = tuple[int, int]
"""A value inside a part: the node's number, and the output's."""


class NotRepeatingError(Exception):
    """The traced layers are not copies of each other."""


@dataclass
class _Part:
    """The nodes between the first reader of a layer's parameters and the next layer's."""

    nodes: list[ir.Node]
    prefix: str
    number: int
    places: dict[ir.Value, _Place] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {
            value: (number, position)
            for number, node in enumerate(self.nodes)
            for position, value in enumerate(node.outputs)
        }

    def at(self, place: _Place) -> ir.Value:
        return self.nodes[place[0]].outputs[place[1]]


def stamp(
    model: ir.Model, parameters: Sequence[Parameter], repeats: Sequence[Repeat]
) -> tuple[Parameter, ...]:
    """Put the layers that were left out back into `model`; return all parameters, sorted by name.

    Args:
        model: The folded graph with `KEPT` layers of each list; mutated.
        parameters: Its parameters.
        repeats: The lists of layers.

    Raises:
        NotRepeatingError: The layers are not copies of each other; `model` is of no further use.
    """
    table = {parameter.name: parameter for parameter in parameters}
    for repeat in repeats:
        table = _stamp_list(model, table, repeat)
    return tuple(sorted(table.values(), key=lambda parameter: parameter.name))


def _stamp_list(
    model: ir.Model, table: dict[str, Parameter], repeat: Repeat
) -> dict[str, Parameter]:
    one, two, rest = _cut(list(model.graph), repeat.path)
    handed_over = _compare(one, two)
    if any(value in one.places for node in rest for value in node.inputs if value is not None):
        msg = f"{repeat.path}: a layer's values are used outside of it"
        raise NotRepeatingError(msg)
    returned = _returned(model.graph, one)
    if returned != _returned(model.graph, two):
        msg = f"{repeat.path}: the layers return different values"
        raise NotRepeatingError(msg)
    last = f"{repeat.path}.{repeat.count - 1}."
    table = _renamed(model.graph, table, f"{repeat.path}.{KEPT - 1}.", last)
    for own in (*model.graph.inputs, *model.graph.outputs):
        for start in (PAST, PRESENT):
            _rename(own, f"{start}{KEPT - 1}.", f"{start}{repeat.count - 1}.")
    previous: dict[_Place, ir.Value] = {place: two.at(place) for place in two.places.values()}
    for number in range(KEPT - 1, repeat.count - 1):
        prefix = f"{repeat.path}.{number}."
        taken = {
            value: _inserted(model.graph.inputs, value, PAST, number, repeat.count - 1)
            for value in list(model.graph.inputs)
            if _in_layer(value, PAST, two) is not None
        }
        previous = _copy(model.graph, two, handed_over, previous, prefix, taken, before=rest[0])
        for place in returned.values():
            _inserted(
                model.graph.outputs, two.at(place), PRESENT, number, repeat.count - 1,
                value=previous[place],
            )  # fmt: skip
        table |= {
            prefix + name.removeprefix(two.prefix): _described(parameter, two.prefix, prefix)
            for name, parameter in list(table.items())
            if name.startswith(two.prefix)
        }
    for node in rest:
        for position, read in enumerate(node.inputs):
            if read is not None and read in two.places:
                node.replace_input_with(position, previous[two.places[read]])
    return table


def _cut(nodes: list[ir.Node], path: str) -> tuple[_Part, _Part, list[ir.Node]]:
    """Cut the graph into (before), part one, part two, and the rest."""
    prefixes = [f"{path}.{number}." for number in range(KEPT)]
    readers: list[list[int]] = [[] for _ in prefixes]
    for index, node in enumerate(nodes):
        for value in node.inputs:
            name = (value.name or "") if value is not None and value.is_initializer() else ""
            for number, prefix in enumerate(prefixes):
                if name.startswith(prefix):
                    readers[number].append(index)
    if not all(readers):
        msg = f"{path}: a layer has no parameter in the graph"
        raise NotRepeatingError(msg)
    for earlier, later in itertools.pairwise(readers):
        if max(earlier) >= min(later):
            msg = f"{path}: the layers' nodes are interleaved"
            raise NotRepeatingError(msg)
    first, second, third = (min(readers[number]) for number in range(1, KEPT))
    return (
        _Part(nodes[first:second], prefixes[1], 1),
        _Part(nodes[second:third], prefixes[2], 2),
        nodes[third:],
    )


def _compare(one: _Part, two: _Part) -> dict[ir.Value, _Place]:
    """Check that the parts are copies; return where *two* finds in *one* what it takes over.

    The keys are values of *one*, as *two* reads them.
    """
    if len(one.nodes) != len(two.nodes):
        msg = f"{one.prefix} has {len(one.nodes)} nodes, {two.prefix} has {len(two.nodes)}"
        raise NotRepeatingError(msg)
    taken: dict[ir.Value, ir.Value] = {}
    for a, b in zip(one.nodes, two.nodes, strict=True):
        if not _same_operator(a, b):
            msg = f"{a.name} and {b.name} differ"
            raise NotRepeatingError(msg)
        for x, y in zip(a.inputs, b.inputs, strict=True):
            if not _corresponds(x, y, one, two, taken):
                msg = f"{a.name} and {b.name} read different values"
                raise NotRepeatingError(msg)
    return {y: one.places[y] for y in taken}


def _same_operator(a: ir.Node, b: ir.Node) -> bool:
    if (a.domain, a.op_type, a.overload) != (b.domain, b.op_type, b.overload):
        return False
    if len(a.inputs) != len(b.inputs) or len(a.outputs) != len(b.outputs):
        return False
    if a.attributes.keys() != b.attributes.keys():
        return False
    return all(_same_attribute(value, b.attributes[name]) for name, value in a.attributes.items())


def _same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type != b.type or a.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return False
    if a.type == ir.AttributeType.TENSOR:
        return _equal_tensors(a.value, b.value)
    return bool(a.value == b.value)


def _corresponds(
    x: ir.Value | None, y: ir.Value | None, one: _Part, two: _Part, taken: dict[ir.Value, ir.Value]
) -> bool:
    """Whether `y` is to *two* what `x` is to *one*; notes in `taken` what is handed over."""
    if x is None or y is None:
        return x is y
    if x in one.places or y in two.places:
        return one.places.get(x) == two.places.get(y)
    if x.is_initializer() and y.is_initializer():
        return x is y or _corresponding_initializers(x, y, one, two)
    if y in one.places:  # handed over by one, as x was handed over to one
        return taken.setdefault(y, x) is x
    name = _in_layer(x, PAST, one)
    return x is y or (name is not None and name == _in_layer(y, PAST, two))


def _corresponding_initializers(x: ir.Value, y: ir.Value, one: _Part, two: _Part) -> bool:
    a, b = x.name or "", y.name or ""
    if a.startswith(one.prefix) and b.startswith(two.prefix):
        return a.removeprefix(one.prefix) == b.removeprefix(two.prefix)
    return _equal_tensors(x.const_value, y.const_value)


def _equal_tensors(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.array_equal(a.numpy(), b.numpy())


def _copy(  # noqa: PLR0917  (one call, above)
    graph: ir.Graph,
    part: _Part,
    handed_over: dict[ir.Value, _Place],
    previous: dict[_Place, ir.Value],
    prefix: str,
    taken: dict[ir.Value, ir.Value],
    before: ir.Node,
) -> dict[_Place, ir.Value]:
    """Insert a copy of `part` with the parameters of `prefix`; return its values by place.

    Inputs of the graph that are `part`'s own are replaced by what `taken` says.
    """
    values: dict[_Place, ir.Value] = {}
    number = prefix.rstrip(".").rpartition(".")[2]

    def counterpart(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value in part.places:
            return values[part.places[value]]
        if value in handed_over:
            return previous[handed_over[value]]
        if value in taken:
            return taken[value]
        if value.is_initializer() and (value.name or "").startswith(part.prefix):
            return _initializer(graph, value, prefix + (value.name or "").removeprefix(part.prefix))
        return value

    copies: list[ir.Node] = []
    for index, node in enumerate(part.nodes):
        copy = ir.Node(
            node.domain,
            node.op_type,
            [counterpart(value) for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=f"{node.name}.{number}",
        )
        for position, (value, source) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
            value.name = f"{source.name}.{number}"
            values[index, position] = value
        copies.append(copy)
    graph.insert_before(before, copies)
    return values


def _in_layer(value: ir.Value, start: str, part: _Part) -> str | None:
    """Return what the name of a cache input or output says behind the layer's number.

    None where `value` is no such input or output, or another layer's.
    """
    before = f"{start}{part.number}."
    name = value.name or ""
    if not (value.is_graph_input() or value.is_graph_output()) or not name.startswith(before):
        return None
    return name.removeprefix(before)


def _returned(graph: ir.Graph, part: _Part) -> dict[str, _Place]:
    """Return where in `part` the layer's cache lies that the graph returns."""
    found: dict[str, _Place] = {}
    for value in graph.outputs:
        if value in part.places:
            name = _in_layer(value, PRESENT, part)
            if name is None:
                msg = f"{value.name} is computed in {part.prefix}"
                raise NotRepeatingError(msg)
            found[name] = part.places[value]
    return found


def _inserted(  # noqa: PLR0917  (two calls, above)
    values: MutableSequence[ir.Value],
    like: ir.Value,
    start: str,
    number: int,
    last: int,
    value: ir.Value | None = None,
) -> ir.Value:
    """Put `value`, or a new one, among inputs or outputs, before those of the last layer.

    It is called after `like`, with `number` for the layer's.
    """
    _, _, what = (like.name or "").removeprefix(start).partition(".")
    result = value if value is not None else ir.Value()
    result.name = f"{start}{number}.{what}"
    result.shape, result.type = like.shape, like.type
    place = next(
        i for i, each in enumerate(values) if (each.name or "").startswith(f"{start}{last}.")
    )
    values.insert(place, result)
    return result


def _rename(value: ir.Value, old: str, new: str) -> None:
    if (value.name or "").startswith(old):
        value.name = new + (value.name or "").removeprefix(old)


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


def _described(parameter: Parameter, old: str, new: str) -> Parameter:
    """Return the same parameter of another layer."""

    def renamed(name: str) -> str:
        return new + name.removeprefix(old) if name.startswith(old) else name

    return replace(
        parameter, name=renamed(parameter.name), aliases=tuple(map(renamed, parameter.aliases))
    )


def _renamed(
    graph: ir.Graph, table: dict[str, Parameter], old: str, new: str
) -> dict[str, Parameter]:
    """Give a layer its number in the whole model; mutates `graph`, returns the new table."""
    for name in [name for name in graph.initializers if name.startswith(old)]:
        value = graph.initializers.pop(name)
        value.name = new + name.removeprefix(old)
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.initializers.add(value)
    described = (_described(parameter, old, new) for parameter in table.values())
    return {parameter.name: parameter for parameter in described}
