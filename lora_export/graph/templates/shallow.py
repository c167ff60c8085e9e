"""A template's graph with fewer layers than it has: those in the middle are taken out.

A template has four layers, of which the second and the third are copies of each other. The last one
reads of the third what that reads of the second, and so on: without the third, it reads it of the
second; without both, what the second reads of the first.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.graph.optimize.layer_parts import NotRepeatingError, cut, starts_of
from lora_export.graph.optimize.settle import share
from lora_export.graph.spec.repeat import Repeat
from lora_export.graph.spec.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from lora_export.core.parameters import Parameter
    from lora_export.graph.optimize.layer_parts import Cut, Part

__all__ = ["without_middle_layers"]

_KEPT = (0, 1, 2, 3)
_REPEAT_KINDS = (0, 1, 1, 1)


def without_middle_layers(
    model: ir.Model, parameters: Sequence[Parameter], path: str, depth: int
) -> tuple[Parameter, ...]:
    """Reduce the layers of the list at `path` to 2 or 3; mutates `model`, returns the parameters.

    Args:
        model: A graph of four layers.
        parameters: Its parameters.
        path: The name of the list of layers.
        depth: How many layers there are to be.

    Raises:
        NotRepeatingError: The layers are no copies of each other.
    """
    share(model)
    nodes = list(model.graph)
    repeat = Repeat(path, _REPEAT_KINDS, _KEPT)
    starts = starts_of(nodes, repeat)
    if not starts:
        return tuple(parameters)
    found = cut(nodes, repeat, starts)
    left_out = [found.parts[number] for number in range(depth - 1, len(_KEPT) - 1)]
    _bypass(found, left_out)
    _remove(model.graph, left_out)
    rename = _renamer(path, depth - 1)
    _rename(model.graph, rename, depth - 1, cached=any(part.returned for part in left_out))
    gone = tuple(part.prefix for part in left_out)
    return tuple(
        replace(each, name=rename(each.name), aliases=tuple(map(rename, each.aliases)))
        for each in parameters
        if not each.name.startswith(gone)
    )


def _bypass(found: Cut, left_out: Sequence[Part]) -> None:
    """Let the last layer read what precedes the layers that are left out; mutates the graph."""
    second, third = found.parts[1], found.parts[2]
    taken_over = {
        place: second.nodes[node].inputs[position]
        for (node, position), place in third.inter_layer_values.items()
    }
    for node in found.rest:
        for position, value in enumerate(node.inputs):
            if value is None or value not in third.places:
                continue
            place = third.places[value]
            source = second.at(place) if second not in left_out else taken_over.get(place)
            if source is None:
                msg = f"{node.name} reads of a layer what the layers do not read of each other"
                raise NotRepeatingError(msg)
            node.replace_input_with(position, source)


def _remove(graph: ir.Graph, left_out: Sequence[Part]) -> None:
    """Remove layers with their parameters, inputs and outputs; mutates `graph`."""
    for part in reversed(left_out):
        outputs = f"{PRESENT}{part.number}."
        kept = [value for value in graph.outputs if not (value.name or "").startswith(outputs)]
        graph.outputs[:] = kept
        graph.remove(part.nodes, safe=False)
        for node in part.nodes:
            for position in range(len(node.inputs)):
                node.replace_input_with(position, None)
        inputs = f"{PAST}{part.number}."
        graph.inputs[:] = [
            value for value in graph.inputs if not (value.name or "").startswith(inputs)
        ]
        for name in [name for name in graph.initializers if name.startswith(part.prefix)]:
            del graph.initializers[name]


def _renamer(path: str, number: int) -> Callable[[str], str]:
    pattern = re.compile(rf"{re.escape(path)}\.{_KEPT[-1]}\.")

    def rename(name: str) -> str:
        found = pattern.match(name)
        return name if found is None else f"{path}.{number}.{name[found.end() :]}"

    return rename


def _rename(graph: ir.Graph, rename: Callable[[str], str], number: int, *, cached: bool) -> None:
    """Give the last layer its number; mutates `graph`."""
    moved = list(graph.initializers.values())
    graph.initializers.clear()
    for value in moved:
        value.name = rename(value.name or "")
        graph.initializers.add(value)
    if not cached:
        return
    for value in (*graph.inputs, *graph.outputs):
        for start in (PAST, PRESENT):
            own = f"{start}{_KEPT[-1]}."
            if (value.name or "").startswith(own):
                value.name = f"{start}{number}.{(value.name or '').removeprefix(own)}"
