"""The numbers of a graph, by their places: what differs between models of one architecture.

init/NAME/dims/I    an axis of an initializer       init/NAME/data/I    an element of one
node/I/NAME/J       an attribute, or an entry of a list of numbers
input/I/J, output/I/J   an axis of an input or output
table/NAME          a whole initializer, with a shape of its own
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import AttributeProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from onnx import ModelProto, TensorProto

__all__ = ["SMALL", "is_outside", "read_numbers", "structure_sha256", "write_numbers"]

SMALL: Final = 8
"""A constant of integers with more elements is a table; one of floats with more than one."""

Number = int | float
_WHOLE: Final = "iub"
_LISTS: Final = {AttributeProto.INTS: "ints", AttributeProto.FLOATS: "floats"}
_SCALARS: Final = {AttributeProto.INT: "i", AttributeProto.FLOAT: "f"}


def is_outside(tensor: TensorProto) -> bool:
    """Whether the value of `tensor` comes from the checkpoint."""
    return bool(tensor.external_data)


def read_numbers(model: ModelProto) -> tuple[dict[str, Number], dict[str, npt.NDArray[Any]]]:
    """Return the numbers by place, and the tables by name."""
    numbers: dict[str, Number] = {}
    tables: dict[str, npt.NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        if is_outside(tensor):
            numbers |= {f"init/{tensor.name}/dims/{i}": n for i, n in enumerate(tensor.dims)}
            continue
        value = numpy_helper.to_array(tensor)
        if value.size > (SMALL if value.dtype.kind in _WHOLE else 1):
            tables[tensor.name] = value
            continue
        for i, n in enumerate(value.ravel()):
            numbers[f"init/{tensor.name}/data/{i}"] = n.item()
    numbers.update(_node_numbers(model))
    numbers.update(_interface_numbers(model))
    return numbers, tables


def _node_numbers(model: ModelProto) -> Iterator[tuple[str, Number]]:
    for at, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            for place, number in _attribute_numbers(attribute):
                yield f"node/{at}/{attribute.name}/{place}", number


def _interface_numbers(model: ModelProto) -> Iterator[tuple[str, Number]]:
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for at, value in enumerate(values):
            for i, axis in enumerate(value.type.tensor_type.shape.dim):
                if axis.HasField("dim_value"):
                    yield f"{kind}/{at}/{i}", axis.dim_value


def _attribute_numbers(attribute: AttributeProto) -> Iterator[tuple[int, Number]]:
    if attribute.type in _SCALARS:
        yield 0, getattr(attribute, _SCALARS[attribute.type])
    elif attribute.type in _LISTS:
        yield from enumerate(getattr(attribute, _LISTS[attribute.type]))


def write_numbers(
    model: ModelProto, numbers: dict[str, Number], tables: dict[str, npt.NDArray[Any]]
) -> None:
    """Put `numbers` and `tables` in their places; mutates `model`."""
    by_name = {tensor.name: tensor for tensor in model.graph.initializer}
    elements: dict[str, dict[int, Number]] = {}
    for place, number in numbers.items():
        kind, rest = place.split("/", 1)
        if kind == "init":
            name, what, at = rest.rsplit("/", 2)
            if what == "dims":
                by_name[name].dims[int(at)] = int(number)
            else:
                elements.setdefault(name, {})[int(at)] = number
        elif kind == "node":
            index, rest = rest.split("/", 1)
            name, at = rest.rsplit("/", 1)
            _write_attribute(model.graph.node[int(index)], name, int(at), number)
        else:
            index, at = rest.split("/")
            value = getattr(model.graph, kind)[int(index)]
            value.type.tensor_type.shape.dim[int(at)].dim_value = int(number)
    for name, given in elements.items():
        array = numpy_helper.to_array(by_name[name]).copy()
        for at_element, number in given.items():
            array.reshape(-1)[at_element] = number
        by_name[name].CopyFrom(numpy_helper.from_array(array, name))
    for name, table in tables.items():
        by_name[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(table), name))


def _write_attribute(node: Any, name: str, at: int, number: Number) -> None:
    attribute = next(each for each in node.attribute if each.name == name)
    if attribute.type in _SCALARS:
        setattr(attribute, _SCALARS[attribute.type], number)
    else:
        getattr(attribute, _LISTS[attribute.type])[at] = number


def structure_sha256(model: ModelProto) -> str:
    """Return a hash of all of `model` but for its numbers and tables; mutates `model`."""
    numbers, tables = read_numbers(model)
    write_numbers(
        model, {place: type(number)(1) for place, number in numbers.items()},
        {name: np.zeros([1] * table.ndim, table.dtype) for name, table in tables.items()},
    )  # fmt: skip
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
