"""A graph's initializers pointed at files in the bytes of its message, which is not parsed.

    ModelProto.graph = 7 → GraphProto.initializer = 5 → TensorProto
        dims = 1, name = 8                   read
        inline values, external_data = 13,
        data_location = 14                   replaced: location, offset, length; EXTERNAL

Fields are written in the order of their numbers, so that the result is what protobuf serializes.
Reference: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.quantization import stored_name
from lora_export.ondevice.protobuf_fields import (
    BYTES,
    VARINT,
    encoded_varint,
    fields,
    read_varint,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.graph.spec.template import Placement
    from lora_export.ondevice.protobuf_fields import Field

__all__ = ["placed_in_bytes"]

_GRAPH: Final = 7
_INITIALIZER, _OUTPUT, _VALUE_INFO = 5, 12, 13
_TO_AXES: Final = (2, 1, 2, 1)
"""``ValueInfoProto.type``, ``tensor_type``, ``shape``, ``dim``."""
_DIM_VALUE: Final = 1
_DIMS, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 8, 13, 14
_KEY, _VALUE = 1, 2
_VALUES: Final = frozenset({4, 5, 7, 9, 10, 11, _EXTERNAL_DATA, _DATA_LOCATION})
"""Where a tensor says what its value is, or where: ``float_data``, …, ``raw_data``, …"""

_EXTERNAL: Final = bytes([_DATA_LOCATION << 3 | VARINT, 1])


def placed_in_bytes(
    onnx_bytes: bytes, placements: Mapping[str, Placement], output_width: int | None
) -> tuple[bytes, set[str]] | None:
    """Return the graph with its initializers pointed at `placements`, and those it lacks.

    Args:
        onnx_bytes: The graph.
        placements: Where each value lies.
        output_width: The size of the output's last axis; None keeps it.

    Returns:
        None where the graph has to be parsed: it is damaged, or a value or the output has another
        shape.
    """
    try:
        model = list(fields(onnx_bytes, 0, len(onnx_bytes)))
        [graph] = [each for each in model if each.number == _GRAPH]
        found = _graph(onnx_bytes, graph, placements, output_width)
    except ValueError:  # not one graph, or no message: parsing it says what is wrong
        return None
    if found is None:
        return None
    body, missing = found
    parts = [
        _message(_GRAPH, body) if each is graph else onnx_bytes[each.begin : each.end]
        for each in model
    ]
    return b"".join(parts), missing


def _graph(
    data: bytes, graph: Field, placements: Mapping[str, Placement], output_width: int | None
) -> tuple[bytes, set[str]] | None:
    """Return the content of a graph; None where it has no outputs, or another shape is needed."""
    missing = set(placements)
    parts: list[bytes] = []
    copied = graph.start
    members = list(fields(data, graph.start, graph.end))
    if not _keeps_outputs(data, members, output_width):
        return None
    for each in members:
        if each.number != _INITIALIZER:
            continue
        tensor = list(fields(data, each.start, each.end))
        name = _name(data, tensor)
        key = name if name in placements else stored_name(name)
        placement = placements.get(key)
        if placement is None:
            continue
        missing.discard(key)
        if placement.shape is not None and placement.shape != _dims(data, tensor):
            return None
        parts += (
            data[copied : each.begin],
            _message(_INITIALIZER, _outside(data, tensor, placement)),
        )
        copied = each.end
    parts.append(data[copied : graph.end])
    return b"".join(parts), missing


def _keeps_outputs(data: bytes, members: list[Field], output_width: int | None) -> bool:
    """Return whether a graph has outputs, and the last axis of the first has this size already.

    Shapes of intermediate values are taken out where a width is given: those need a parse.
    """
    outputs = [each for each in members if each.number == _OUTPUT]
    if not outputs or output_width is None:
        return bool(outputs)
    axes = [outputs[0]]
    for number in _TO_AXES:
        axes = [each for outer in axes for each in _inside(data, outer) if each.number == number]
    size = list(_inside(data, axes[-1])) if axes else []
    return (
        all(each.number != _VALUE_INFO for each in members)
        and [each.number for each in size] == [_DIM_VALUE]
        and read_varint(data, size[0].start, size[0].end)[0] == output_width
    )


def _inside(data: bytes, message: Field) -> Iterator[Field]:
    return fields(data, message.start, message.end)


def _name(data: bytes, tensor: list[Field]) -> str:
    names = [each for each in tensor if each.number == _NAME]
    return data[names[-1].start : names[-1].end].decode("utf-8") if names else ""


def _dims(data: bytes, tensor: list[Field]) -> tuple[int, ...]:
    """Return the shape of a tensor; one size a field, or packed into one."""
    sizes: list[int] = []
    for each in tensor:
        if each.number == _DIMS:
            position = each.start
            while position < each.end:
                size, position = read_varint(data, position, each.end)
                sizes.append(size)
    return tuple(sizes)


def _outside(data: bytes, tensor: list[Field], placement: Placement) -> bytes:
    """Return the content of a tensor whose value lies in a file."""
    kept = [each for each in tensor if each.number not in _VALUES]
    before = [data[each.begin : each.end] for each in kept if each.number < _EXTERNAL_DATA]
    after = [data[each.begin : each.end] for each in kept if each.number > _DATA_LOCATION]
    entries = (
        ("location", placement.location),
        ("offset", str(placement.offset_bytes)),
        ("length", str(placement.length_bytes)),
    )
    told = [
        _message(_EXTERNAL_DATA, _message(_KEY, key.encode()) + _message(_VALUE, value.encode()))
        for key, value in entries
    ]
    return b"".join((*before, *told, _EXTERNAL, *after))


def _message(number: int, content: bytes) -> bytes:
    """Return a field with a length of its own."""
    return bytes([number << 3 | BYTES]) + encoded_varint(len(content)) + content
