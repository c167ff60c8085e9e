"""Changes to GGUF files that keep the container whole: other metadata, other tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tools.reader_fuzz.mutate_bytes import EXTREMES, mutate_bytes

if TYPE_CHECKING:
    from random import Random

__all__ = ["mutate_gguf"]

_PACKED: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q",
                  11: "q", 12: "d"}  # fmt: skip
_FLOATS: Final = frozenset({6, 12})
_TEXT, _LIST = 8, 9
_ALIGNMENT: Final = 32
_SMALL: Final = (-1, 0, 1, 2, 3, 7, 16, 33, 1000)
_ODD_FLOATS: Final = (0.0, -1.0, 0.5, 1e-30, 1e38, float("nan"), float("inf"), float("-inf"))
_ODD_TEXTS: Final = ("", "a", "llama", "gpt2", "qwen2", "gemma3", "phi3", "adapter", "linear",
                     "yarn", "../x", "\0", "\u202e\x1b[31m", "a" * 300)  # fmt: skip


@dataclass
class _File:
    values: list[tuple[str, int, Any]] = field(default_factory=list)
    """Keys, types and values; of a list the type of its items and these."""
    tensors: list[tuple[str, list[int], int, int]] = field(default_factory=list)
    """Names, sizes as GGUF orders them, types and offsets."""
    data: bytes = b""


def mutate_gguf(chance: Random, data: bytes) -> bytes:
    """Return a GGUF file with a few settings or tensors changed, removed, repeated or renamed."""
    if not chance.randrange(4):
        return mutate_bytes(chance, data)
    file = _decode(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if chance.randrange(3):
            _change_value(chance, file)
        else:
            _change_tensor(chance, file)
    return _encode(file)


def _change_value(chance: Random, file: _File) -> None:
    """Change one of the metadata; mutates `file`."""
    at, kind = chance.randrange(len(file.values)), chance.randrange(6)
    key, code, value = file.values[at]
    if kind == 0 and len(file.values) > 1:
        del file.values[at]
    elif kind == 1:
        other = chance.choice(file.values)[0]
        file.values[at] = (chance.choice((other, f"{key}x", "split.count", "")), code, value)
    elif kind == 2:  # noqa: PLR2004
        file.values[at] = (key, *chance.choice(file.values)[1:])
    else:
        file.values[at] = (key, *_value(chance))


def _value(chance: Random) -> tuple[int, Any]:
    code = chance.choice((*_PACKED, 4, 4, 6, _TEXT, _TEXT, _LIST))
    if code == _TEXT:
        return code, chance.choice(_ODD_TEXTS)
    if code == _LIST:
        return code, (4, [chance.choice(_SMALL) % 100 for _ in range(chance.randrange(4))])
    if code in _FLOATS:
        return code, chance.choice(_ODD_FLOATS)
    size = struct.calcsize(f"<{_PACKED[code]}")
    signed, whole = _PACKED[code].islower(), chance.choice((*_SMALL, chance.choice(EXTREMES)))
    if code == 7:  # noqa: PLR2004  (a flag)
        return code, bool(whole % 2)
    return code, int.from_bytes((whole % (1 << 8 * size)).to_bytes(size, "little"), "little",
                                signed=signed)  # fmt: skip


def _change_tensor(chance: Random, file: _File) -> None:
    """Change the entry of a tensor; mutates `file`."""
    at, kind = chance.randrange(len(file.tensors)), chance.randrange(6)
    name, sizes, code, offset = file.tensors[at]
    if kind == 0 and len(file.tensors) > 1:
        del file.tensors[at]
        return
    if kind == 1:
        name = chance.choice((chance.choice(file.tensors)[0], f"{name}x", name.replace("0", "9")))
    elif kind == 2:  # noqa: PLR2004
        sizes = sizes[::-1][: chance.randint(1, 2)]
    elif kind == 3:  # noqa: PLR2004
        sizes = [*sizes]
        sizes[chance.randrange(len(sizes))] = chance.choice((0, 1, 32, 256, 2**31, 2**63))
    elif kind == 4:  # noqa: PLR2004
        code = chance.choice((*range(32), 39, 40, 2**31))
    else:
        offset = chance.choice((0, 32, offset + 32, 2**40, 2**63))
    file.tensors[at] = (name, sizes, code, offset)


def _decode(data: bytes) -> _File:
    at = 4
    _, tensors, values = struct.unpack_from("<IQQ", data, at)
    at += 20
    file = _File()

    def number(code: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return found

    def text() -> str:
        nonlocal at
        size = number("Q")
        at += size
        return data[at - size : at].decode()

    for _ in range(values):
        key, code = text(), number("I")
        if code == _LIST:
            inner, count = number("I"), number("Q")
            items = [text() if inner == _TEXT else number(_PACKED[inner]) for _ in range(count)]
            file.values.append((key, code, (inner, items)))
        else:
            file.values.append((key, code, text() if code == _TEXT else number(_PACKED[code])))
    for _ in range(tensors):
        name, axes = text(), number("I")
        sizes = [number("Q") for _ in range(axes)]
        file.tensors.append((name, sizes, number("I"), number("Q")))
    file.data = data[at + -at % _ALIGNMENT :]
    return file


def _encode(file: _File) -> bytes:
    out = bytearray(b"GGUF")
    out += struct.pack("<IQQ", 3, len(file.tensors), len(file.values))
    for key, code, value in file.values:
        out += _text(key) + struct.pack("<I", code)
        if code == _LIST:
            inner, items = value
            out += struct.pack("<IQ", inner, len(items))
            out += b"".join(_scalar(inner, each) for each in items)
        else:
            out += _scalar(code, value)
    for name, sizes, code, offset in file.tensors:
        out += _text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        out += struct.pack("<IQ", code, offset)
    return bytes(out) + bytes(-len(out) % _ALIGNMENT) + file.data


def _scalar(code: int, value: Any) -> bytes:
    return _text(value) if code == _TEXT else struct.pack(f"<{_PACKED[code]}", value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
