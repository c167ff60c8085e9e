"""Shapes of a graph's values for given axis sizes, which show where the batch axis is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["large_sizes", "shapes_of"]

_FIRST_SIZE: Final = 1_000_003
_SUMS: Final = {"total_sequence": "past_sequence + sequence"}


def shapes_of(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value, if the named axes of the inputs have these `sizes`.

    Names do not survive a reshape, numbers do: a large prime is found again in whatever it is a
    factor of. What the graph says itself of shapes counts behind operators that are not ONNX's.
    """
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    graph = sized.graph
    foreign = {
        name
        for node in graph.node
        if not onnx.defs.has(node.op_type, node.domain)
        for name in node.output
    }
    stated = [each for each in graph.value_info if each.name in foreign]
    del graph.value_info[:]
    graph.value_info.extend(stated)
    for value in (*graph.input, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def large_sizes(names: Iterable[str]) -> dict[str, int]:
    """Return a size for each named axis: primes larger than the axes that models have by design.

    A length that is the sum of two others, as that of a cache's mask, is their sum.
    """
    found: dict[str, int] = {}
    number = _FIRST_SIZE
    for name in dict.fromkeys(names):
        while any(number % each == 0 for each in range(2, int(number**0.5) + 1)):
            number += 1
        found[name] = number
        number += 1
    for name in found:
        parts = [each.strip() for each in _SUMS.get(name, name).split("+")]
        if len(parts) > 1 and set(parts) <= set(found):
            found[name] = sum(found[each] for each in parts)
    return found
