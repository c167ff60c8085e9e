"""An ONNX file parsed without its large tensors, which stay on disk.

Parsing a file of 2 GB, protobuf's limit, takes several times its size. Here the messages are
walked by position (https://protobuf.dev/programming-guides/encoding): the bytes of a large
``raw_data`` are left out, and the tensor is marked as external data at `HERE`, with their offset
and length in this file. What remains is small, and is parsed as usual.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import onnx

from lora_export.core.errors import ExportDirectoryError, InputError
from lora_export.graph.foreign.soundness import structural_problem
from lora_export.graph.spec.external_values import place_outside
from lora_export.graph.spec.onnx_file import parse_any_onnx
from lora_export.ondevice.file_opening import open_descriptor, reason_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HERE", "INLINE_BYTES", "damaged_graph", "read_skeleton"]

HERE: Final = "\0"
"""The location of data that lie in the ``.onnx`` file itself; no path of a file can be this."""

INLINE_BYTES: Final = 1024
"""Tensors of fewer bytes stay in the model, as the exporters do it too."""

_WINDOW_BYTES: Final = 1 << 20
_MAX_DEPTH: Final = 100
_MOST_FIELDS: Final = 1 << 21
"""How many fields are walked: a message of two bytes takes hundreds once it is parsed."""

_VARINT_BYTES: Final = 10
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_HOLD_TENSORS: Final = frozenset(
    {"ModelProto", "GraphProto", "NodeProto", "AttributeProto", "FunctionProto", "TensorProto"}
)
_RAW_DATA: Final = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def read_skeleton(path: Path) -> onnx.ModelProto:
    """Return the model in `path`, its large tensors marked as external data at `HERE`.

    Raises:
        InputError: The file is missing, cut short or not an ONNX model.
    """
    try:
        descriptor = open_descriptor(path)
    except OSError as error:
        msg = f"cannot read the graph {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Give the .onnx file: --graph model.onnx") from error
    try:
        size_bytes = os.fstat(descriptor).st_size
        reader = _Reader(path, descriptor)
        data = _without_weights(reader, 0, size_bytes, onnx.ModelProto.DESCRIPTOR)
    except OSError as error:
        msg = f"cannot read the graph {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the disk, or copy it to another.") from error
    finally:
        os.close(descriptor)
    try:
        model = parse_any_onnx(data)
    except ExportDirectoryError as error:
        raise damaged_graph(path, "it cannot be parsed, or a name in it is not UTF-8") from error
    if not model.graph.node or not model.opset_import:
        raise damaged_graph(path, "it holds no graph")
    if problem := structural_problem(model):
        raise damaged_graph(path, problem)
    return model


def damaged_graph(path: Path, what: str) -> InputError:
    """Return the error for a file that is not an ONNX model, or not a whole one."""
    return InputError(
        f"{str(path)!r} is not a readable ONNX model: {what}",
        hint="The file is damaged or incomplete: copy or export it again.",
    )


class _Reader:
    """Reads a file by position through a window, so that small fields cost no call each."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._fields = 0
        self._window = b""
        self._start = 0

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on."""
        begin = start - self._start
        if begin < 0 or begin + length > len(self._window):
            self._window = os.pread(self._descriptor, max(length, _WINDOW_BYTES), start)
            self._start, begin = start, 0
        found = self._window[begin : begin + length]
        if len(found) < length:
            raise damaged_graph(self.path, f"it ends at byte {start + len(found)}")
        return found

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return the number that begins at `position`, and where it ends."""
        value = 0
        for index, byte in enumerate(self.read(position, min(_VARINT_BYTES, end - position))):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:  # noqa: PLR2004  (the continuation bit)
                return value, position + index + 1
        raise damaged_graph(self.path, f"the number at byte {position} does not end")

    def field(self, position: int, end: int) -> tuple[int, int, int, int]:
        """Return a field's number and wire type, and where its content begins and ends."""
        self._fields += 1
        if self._fields > _MOST_FIELDS:
            raise damaged_graph(self.path, f"it has more than {_MOST_FIELDS} nodes and tensors")
        tag, body = self.varint(position, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            stop = self.varint(body, end)[1]
        elif wire == _LENGTH:
            length, body = self.varint(body, end)
            stop = body + length
        elif wire in {_FIXED64, _FIXED32}:
            stop = body + (8 if wire == _FIXED64 else 4)
        else:
            raise damaged_graph(self.path, f"the field at byte {position} has no known type")
        if stop > end or number == 0:
            raise damaged_graph(self.path, f"the field at byte {position} has no end")
        return number, wire, body, stop


def _without_weights(reader: _Reader, position: int, end: int, kind: Any, depth: int = 0) -> bytes:
    """Return the message of `kind`, a descriptor, between two positions, without large tensors."""
    if depth > _MAX_DEPTH:
        raise damaged_graph(reader.path, f"it nests deeper than {_MAX_DEPTH} messages")
    parts: list[bytes] = []
    while position < end:
        number, wire, body, stop = reader.field(position, end)
        large = wire == _LENGTH and stop - body >= INLINE_BYTES
        field = kind.fields_by_number.get(number) if large else None
        inner = field.message_type if field is not None else None
        if large and kind.name == "TensorProto" and number == _RAW_DATA:
            parts.append(_placed_here(body, stop - body))
        elif inner is not None and inner.name in _HOLD_TENSORS:
            message = _without_weights(reader, body, stop, inner, depth + 1)
            parts.extend((_encoded(number << 3 | _LENGTH), _encoded(len(message)), message))
        else:
            parts.append(reader.read(position, stop - position))
        position = stop
    return b"".join(parts)


def _placed_here(offset: int, length: int) -> bytes:
    """Return the fields that say where a tensor's bytes are, to be added to its message."""
    tensor = onnx.TensorProto()
    place_outside(tensor, HERE, offset, length)
    fields: bytes = tensor.SerializeToString()
    return fields


def _encoded(value: int) -> bytes:
    """Return `value` as a varint."""
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004  (seven bits a byte)
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
