"""The fields of a protobuf message by their positions, read without a library.

https://protobuf.dev/programming-guides/encoding: a field is a tag (number << 3 | wire type) and its
content. The standard library alone: host and device share this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BYTES", "VARINT", "Field", "encoded_varint", "fields", "read_varint"]

VARINT, BYTES = 0, 2
"""The wire types of numbers, and of what has a length: texts, messages, packed numbers."""

_FIXED_BYTES: Final = {1: 8, 5: 4}
_MORE: Final = 0x80
"""The bit of a byte of a number after which more bytes follow."""


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Its number.
        wire: Its wire type.
        begin: Where its tag begins.
        start: Where its content begins.
        end: Where that ends.
    """

    number: int
    wire: int
    begin: int
    start: int
    end: int


def fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two positions.

    Raises:
        ValueError: It is no message of protobuf.
    """
    position = start
    while position < end:
        begin = position
        tag = data[position]
        position += 1
        if tag >= _MORE:
            tag, position = read_varint(data, begin, end)
        if tag < 8:  # noqa: PLR2004  (field numbers begin with 1; a file of zeros is full of these)
            msg = "one of its fields has the number 0"
            raise ValueError(msg)
        wire = tag & 7
        first = position
        if wire == VARINT:
            _, last = read_varint(data, first, end)
        elif wire == BYTES:
            if first < end and data[first] < _MORE:
                length, first = data[first], first + 1
            else:
                length, first = read_varint(data, first, end)
            last = first + length
        elif wire in _FIXED_BYTES:
            last = first + _FIXED_BYTES[wire]
        else:
            msg = f"its field {tag >> 3} has the unknown wire type {wire}"
            raise ValueError(msg)
        if last > end:
            msg = f"its field {tag >> 3} does not end where the message does"
            raise ValueError(msg)
        yield Field(tag >> 3, wire, begin, first, last)
        position = last


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number at `position`, of 64 bits at most, and where it ends.

    Raises:
        ValueError: It does not end before `end`.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < _MORE:
            return value, position
    msg = "a number in it does not end"
    raise ValueError(msg)


def encoded_varint(value: int) -> bytes:
    r"""Return a number as a varint.

    >>> encoded_varint(1), encoded_varint(300)
    (b'\x01', b'\xac\x02')
    """
    encoded = bytearray()
    while value >= _MORE:
        encoded.append(value & 0x7F | _MORE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
