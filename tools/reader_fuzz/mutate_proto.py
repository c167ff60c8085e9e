"""Changes to protobuf messages that keep the lengths around them right.

Without a schema, a field of bytes is taken for a message wherever it can be parsed as one.
Encoding: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from tools.reader_fuzz.mutate_bytes import EXTREMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

__all__ = ["mutate_proto"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DEEPEST: Final = 12
_NESTED: Final = (90, 150, 3000)
_TEXTS: Final = (
    b"", b"\xff\xfe", b"a", b"\0", b"../x.bin", b"/etc/passwd", b"x.bin", b"W", b"Identity",
    b"Constant",
    b"Transpose", b"Cast", b"MatMul", b"Gather", b"If", b"Loop", b"value", b"location", b"offset",
    b"length",
    b"-1", b"0", b"999999999999", b"1e3", b"0x10", b"99999999999999999999", b"\xe2\x80\xae",
    b"a" * 300,
    b"_" * 5000, b"1" * 5000,
)  # fmt: skip
"""Contents of fields that are texts."""


_Value: TypeAlias = "int | bytes | list[_Field]"


@dataclass
class _Field:
    """A field: its number, its wire type, and its number, bytes or fields."""

    number: int
    wire: int
    value: _Value


def mutate_proto(chance: Random, data: bytes) -> bytes:
    """Return a message with a few fields changed, removed, repeated, exchanged or nested."""
    fields = _parse(data, 0)
    if not fields:
        return data
    for _ in range(chance.choice((1, 1, 2, 3))):
        messages = list(_messages(fields))
        holder = chance.choice(messages)
        if holder:
            _change(chance, holder, messages)
    return _encode(fields)


def _messages(fields: list[_Field]) -> Iterator[list[_Field]]:
    yield fields
    for each in fields:
        if isinstance(each.value, list):
            yield from _messages(each.value)


def _change(chance: Random, holder: list[_Field], messages: list[list[_Field]]) -> None:
    """Change one field of a message; mutates `holder`."""
    index, kind = chance.randrange(len(holder)), chance.randrange(10)
    field = holder[index]
    if kind == 0:
        del holder[index]
    elif kind == 1:
        holder.insert(index, _copy(field))
    elif kind == 2:  # noqa: PLR2004
        other = chance.choice(messages)
        same = [each for each in other if each.wire == field.wire]
        if same:
            holder[index] = _Field(field.number, field.wire, _copy(chance.choice(same)).value)
    elif kind == 3:  # noqa: PLR2004
        other = chance.choice(messages)
        holder.insert(index, _copy(chance.choice(other)) if other else field)
    elif kind == 4:  # noqa: PLR2004
        field.number = chance.choice((1, 2, 3, 5, 8, 9, 14, 20, 2**29 - 1, field.number + 1))
    elif kind == 5 and isinstance(field.value, list):  # noqa: PLR2004
        inner = _encode(field.value)
        for _ in range(chance.choice(_NESTED) // 10):
            inner = _tagged(field.number, inner)
        holder[index] = _Field(field.number, _LENGTH, inner)
    else:
        field.value = _other_value(chance, field.value, messages)


def _other_value(chance: Random, value: _Value, messages: list[list[_Field]]) -> _Value:
    """Return another number, or another text: an odd one, or one from elsewhere."""
    if isinstance(value, int):
        return chance.choice((value + 1, chance.choice(EXTREMES), 0)) & (1 << 64) - 1
    if isinstance(value, bytes):
        held = [each.value for message in messages for each in message]
        texts = [each for each in held if isinstance(each, bytes)]
        return chance.choice((chance.choice(texts), chance.choice(_TEXTS), value[:-1]))
    return value


def _copy(field: _Field) -> _Field:
    value = [_copy(each) for each in field.value] if isinstance(field.value, list) else field.value
    return _Field(field.number, field.wire, value)


def _parse(data: bytes, depth: int) -> list[_Field] | None:
    """Return the fields of a message; None where `data` is none."""
    fields: list[_Field] = []
    position = 0
    while position < len(data):
        tag = _varint(data, position)
        if tag is None or tag[0] >> 3 == 0 or tag[0] >> 3 > 100:  # noqa: PLR2004
            return None
        number, wire, position = tag[0] >> 3, tag[0] & 7, tag[1]
        if wire not in {_VARINT, _FIXED64, _LENGTH, _FIXED32}:
            return None
        if wire in {_FIXED64, _FIXED32}:
            end = position + (8 if wire == _FIXED64 else 4)
            value: _Value = int.from_bytes(data[position:end], "little")
            position = end
        else:
            found = _varint(data, position)
            if found is None:
                return None
            value, position = found
            if wire == _LENGTH:
                content = data[position : position + found[0]]
                position += found[0]
                inner = (
                    _parse(content, depth + 1) if depth < _DEEPEST and len(content) > 1 else None
                )
                value = inner or content
        if position > len(data):
            return None
        fields.append(_Field(number, wire, value))
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int] | None:
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # noqa: PLR2004  (the continuation bit)
            return value, position + index + 1
    return None


def _encode(fields: list[_Field]) -> bytes:
    out = bytearray()
    for field in fields:
        if isinstance(field.value, list):
            out += _tagged(field.number, _encode(field.value))
        elif isinstance(field.value, bytes):
            out += _tagged(field.number, field.value)
        else:
            out += _number(field.number << 3 | field.wire)
            width = {_FIXED64: 8, _FIXED32: 4}.get(field.wire)
            value = field.value
            out += (
                _number(value)
                if width is None
                else (value % (1 << 8 * width)).to_bytes(width, "little")
            )
    return bytes(out)


def _tagged(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _LENGTH) + _number(len(content)) + content


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004  (seven bits a byte)
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
