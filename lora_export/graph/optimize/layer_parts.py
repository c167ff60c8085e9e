"""A traced graph cut into its layers, and the layers of a kind compared.

The graph is cut where a layer's parameters are read for the first time: a *part* is what lies
between the first readers of one layer and of the next. Where a layer is cut does not matter, since
all are cut at the same place. What lies there but depends on no layer (a mask, made where it is
first used) is not part of it. Nor are the first layer and the last one parts: what comes before the
second layer, and what comes after the last but one, stays as it is.

Of two parts of a kind are compared operators, attributes, and for each input whether it is

    1. the same value from outside of the parts (a mask, a rotary table), or an equal constant;
    2. the same place inside the part;
    3. the same parameter of the layer;
    4. a value of the part before, handed over;
    5. the same cache input of the layer (``past_key_values.1.key`` to one, ``….2.key`` to two).

Where in the part before a value comes from depends on that part's kind: it has to be the same for
all parts of one kind that follow parts of another. What a part returns as the layer's cache
(``present.1.key``) must lie at the same place in all parts of its kind.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lora_export.graph.spec.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_export.graph.spec.repeat import Repeat

__all__ = ["Cut", "NotRepeatingError", "Part", "Place", "Read", "cut", "in_layer", "starts_of"]

Place = tuple[int, int]
"""A value inside a part: the node's number, and the output's."""

Read = tuple[int, int]
"""Where a part reads a value: the node's number, and the input's."""


class NotRepeatingError(Exception):
    """The traced layers of a kind are not copies of each other."""


@dataclass(eq=False)
class Part:
    """The nodes of one layer.

    Attributes:
        number: The layer's number in the model.
        kind: Its kind.
        prefix: What the names of its parameters begin with.
        nodes: Its nodes, in order.
        before: The part before it, where that is a part.
        places: Where in the part its values are made.
        inter_layer_values: Where it reads values of the part before, and where they are made there.
        returned: What the graph returns of it, by what a name says behind the layer's number.
    """

    number: int
    kind: int
    prefix: str
    nodes: list[ir.Node]
    before: Part | None
    places: dict[ir.Value, Place] = field(init=False)
    inter_layer_values: dict[Read, Place] = field(init=False)
    returned: dict[str, Place] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {
            value: (number, position)
            for number, node in enumerate(self.nodes)
            for position, value in enumerate(node.outputs)
        }
        before = self.before.places if self.before is not None else {}
        self.inter_layer_values = {
            (number, position): before[value]
            for number, node in enumerate(self.nodes)
            for position, value in enumerate(node.inputs)
            if value is not None and value in before
        }
        self.returned = {}
        for value, place in self.places.items():
            if value.is_graph_output():
                name = in_layer(value, PRESENT, self.number)
                if name is None:
                    msg = f"{value.name} is computed in {self.prefix}"
                    raise NotRepeatingError(msg)
                self.returned[name] = place

    def at(self, place: Place) -> ir.Value:
        """Return the value that is made at `place`."""
        return self.nodes[place[0]].outputs[place[1]]


@dataclass(frozen=True)
class Cut:
    """A graph whose layers are parts, found to be copies of each other.

    Attributes:
        parts: The parts by the layer's number.
        models: Of each kind, the part that others can be made after.
        inter_layer_values: By kinds, of the part before and of the part: as
            `Part.inter_layer_values`.
        rest: The nodes that follow the parts.
    """

    parts: dict[int, Part]
    models: dict[int, Part]
    inter_layer_values: dict[tuple[int, int], dict[Read, Place]]
    rest: list[ir.Node]


def cut(nodes: Sequence[ir.Node], repeat: Repeat, starts: Sequence[int]) -> Cut:
    """Cut a graph's `nodes` where the layers of `repeat` start, and compare the parts.

    Raises:
        NotRepeatingError: The layers of a kind are not copies of each other.
    """
    varying = _varying(nodes, repeat)
    parts: dict[int, Part] = {}
    before: Part | None = None
    bounds = itertools.pairwise(zip(repeat.kept[1:], starts[1:], strict=True))
    for (number, start), (_, end) in bounds:
        own = [node for node in nodes[start:end] if node in varying]
        prefix = f"{repeat.path}.{number}."
        before = parts[number] = Part(number, repeat.kinds[number], prefix, own, before)
    rest = list(nodes[starts[-1] :])
    _check_outside(parts.values(), rest, last=before)
    models = {part.kind: part for part in parts.values()}
    inter_layer_values: dict[tuple[int, int], dict[Read, Place]] = {}
    for part in parts.values():
        _compare(part, models[part.kind])
        if part.before is not None:
            kinds = part.before.kind, part.kind
            if (
                inter_layer_values.setdefault(kinds, part.inter_layer_values)
                != part.inter_layer_values
            ):
                msg = f"{part.prefix} takes over other values than its like"
                raise NotRepeatingError(msg)
    return Cut(parts, models, inter_layer_values, rest)


def starts_of(nodes: Sequence[ir.Node], repeat: Repeat) -> list[int]:
    """Return which nodes read each traced layer's parameters first; none if none reads any.

    Raises:
        NotRepeatingError: The layers do not follow one another.
    """
    readers: dict[int, list[int]] = {number: [] for number in repeat.kept}
    pattern = re.compile(rf"{re.escape(repeat.path)}\.(\d+)\.")
    for index, node in enumerate(nodes):
        for value in node.inputs:
            name = (value.name or "") if value is not None and _is_parameter(value) else ""
            if match := pattern.match(name):
                readers[int(match[1])].append(index)
    if not any(readers.values()):
        return []
    if not all(readers.values()):
        msg = f"{repeat.path}: a layer has no parameter in the graph"
        raise NotRepeatingError(msg)
    for earlier, later in itertools.pairwise(readers.values()):
        if max(earlier) >= min(later):
            msg = f"{repeat.path}: the layers' nodes are interleaved"
            raise NotRepeatingError(msg)
    return [min(each) for each in readers.values()]


def _is_parameter(value: ir.Value) -> bool:
    """Whether the checkpoint brings `value`: equal constants of layers are one by now."""
    return value.is_initializer() and value.const_value is None


def _varying(nodes: Sequence[ir.Node], repeat: Repeat) -> set[ir.Node]:
    """Return the nodes that depend on a layer: on its parameters, or on what its cache holds."""
    values: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in nodes:
        for value in node.inputs:
            name = (value.name or "") if value is not None else ""
            if value is not None and (
                value in values
                or (_is_parameter(value) and name.startswith(f"{repeat.path}."))
                or (value.is_graph_input() and name.startswith(PAST) and node.op_type != "Shape")
            ):
                found.add(node)
                values.update(node.outputs)
                break
    return found


def _check_outside(parts: Iterable[Part], rest: Sequence[ir.Node], last: Part | None) -> None:
    """Refuse a graph where others than the next layer read a layer's values."""
    inside = {value: part for part in parts for value in part.places}
    readers = [(node, part) for part in parts for node in part.nodes]
    for node, part in (*readers, *((node, None) for node in rest)):
        allowed = (part, part.before) if part is not None else (last,)
        for value in node.inputs:
            if value is not None and value in inside and inside[value] not in allowed:
                msg = f"{inside[value].prefix} has values that are used outside of it"
                raise NotRepeatingError(msg)


def _compare(part: Part, model: Part) -> None:
    """Check that `part` is a copy of `model`."""
    if part is model:
        return
    if len(part.nodes) != len(model.nodes):
        msg = f"{part.prefix} has {len(part.nodes)} nodes, {model.prefix} has {len(model.nodes)}"
        raise NotRepeatingError(msg)
    if part.returned != model.returned:
        msg = f"{part.prefix} and {model.prefix} return different values"
        raise NotRepeatingError(msg)
    first: dict[Place, ir.Value] = {}
    for number, (a, b) in enumerate(zip(part.nodes, model.nodes, strict=True)):
        if not _same_operator(a, b):
            msg = f"{a.name} and {b.name} differ"
            raise NotRepeatingError(msg)
        for position, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            read = number, position
            if part.before is None and read in model.inter_layer_values:  # the second layer
                same = (
                    x is not None
                    and x not in part.places
                    and first.setdefault(model.inter_layer_values[read], x) is x
                )
            else:
                same = (read in part.inter_layer_values) == (read in model.inter_layer_values) and (
                    read in part.inter_layer_values or _corresponds(x, y, part, model)
                )
            if not same:
                msg = f"{a.name} and {b.name} read different values"
                raise NotRepeatingError(msg)


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


def _corresponds(x: ir.Value | None, y: ir.Value | None, part: Part, model: Part) -> bool:
    """Whether `x`, which is not handed over, is to `part` what `y` is to `model`."""
    if x is None or y is None:
        return x is y
    if x in part.places or y in model.places:
        return part.places.get(x) == model.places.get(y)
    if x.is_initializer() and y.is_initializer():
        return x is y or _corresponding_initializers(x, y, part, model)
    name = in_layer(x, PAST, part.number)
    return x is y or (name is not None and name == in_layer(y, PAST, model.number))


def _corresponding_initializers(x: ir.Value, y: ir.Value, part: Part, model: Part) -> bool:
    a, b = x.name or "", y.name or ""
    if a.startswith(part.prefix) and b.startswith(model.prefix):
        return a.removeprefix(part.prefix) == b.removeprefix(model.prefix)
    return _equal_tensors(x.const_value, y.const_value)


def _equal_tensors(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.array_equal(a.numpy(), b.numpy())


def in_layer(value: ir.Value, start: str, number: int) -> str | None:
    """Return what the name of a cache input or output says behind the layer's number.

    None where `value` is no such input or output, or another layer's.
    """
    before = f"{start}{number}."
    name = value.name or ""
    if not (value.is_graph_input() or value.is_graph_output()) or not name.startswith(before):
        return None
    return name.removeprefix(before)
