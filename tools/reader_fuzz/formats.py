"""Changes that keep a container whole and damage what is in it: safetensors, zip archives."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES
from lora_export.core.safetensors_file import encode_header
from tools.reader_fuzz.mutate_bytes import mutate_bytes, with_words
from tools.reader_fuzz.mutate_tables import mutate_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from tools.reader_fuzz.reader import Mutator

__all__ = ["mutate_header", "mutate_layout", "mutate_npy", "safetensors_bytes", "zip_mutator"]

_LENGTH_BYTES: Final = 8
_SIZES: Final = (0, 1, 2, 3, 4, 8, 2**31, 2**63)
_NPY: Final = with_words((
    b"'<f4'", b"'|O'", b"'<U9'", b"'>i8'", b"'|V9'", b"'<M8[ns]'", b"[('a', '<f4')]", b"'<c16'",
    b"'<f0'",
    b"True", b"False", b"'fortran_order': True", b"(1,)", b"()", b"(-1,)", b"(99999999999,)",
    b"(9223372036854775807, 2)", b"(0, 9223372036854775807)", b"(4294967296, 4294967296)",
    b"(1.5,)",
    b"(True,)", b"'shape': ", b"'descr': ", b"{", b"}", b"(" * 100, b"\x93NUMPY\x03\x00",
    b"\x93NUMPY\x02\x00",
))  # fmt: skip


def safetensors_bytes(
    arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a safetensors file of arrays."""
    known = {row.numpy: row for row in DTYPES.values()}
    rows = [(name, known[each.dtype], each.shape) for name, each in arrays.items()]
    header, _ = encode_header(rows, metadata or {})
    return header + b"".join(each.tobytes() for each in arrays.values())


def mutate_header(chance: Random, data: bytes) -> bytes:
    """Return a safetensors file with another header, whose length is right."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = mutate_json(chance, data[_LENGTH_BYTES:][:length])
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + data[_LENGTH_BYTES + length :]


def mutate_layout(chance: Random, data: bytes) -> bytes:
    """Return a safetensors file without a contradiction, of other names, shapes and dtypes."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    table = json.loads(data[_LENGTH_BYTES:][:length])
    metadata = table.pop("__metadata__", {})
    known = {row.safetensors: row for row in DTYPES.values()}
    rows = {name: [known[row["dtype"]], row["shape"]] for name, row in table.items()}
    for _ in range(chance.randint(1, 3)):
        if rows:
            _change_row(chance, rows)
    small = [(n, d, tuple(s)) for n, (d, s) in rows.items() if np.prod([float(e) for e in s]) < 1e5]  # noqa: PLR2004
    header, _ = encode_header(small, metadata)
    total = sum(
        int(np.prod(shape, dtype=object)) * dtype.itemsize_bytes for _, dtype, shape in small
    )
    values = data[_LENGTH_BYTES + length :] or b"\0"
    filled: bytes = (values * (total // len(values) + 1))[:total]
    return header + filled


def _change_row(chance: Random, rows: dict[str, list[Any]]) -> None:
    """Change a tensor's name, dtype or shape; mutates `rows`."""
    name = chance.choice(list(rows))
    row = [rows[name][0], list(rows[name][1])]
    kind = chance.randrange(6)
    if kind == 0:
        del rows[name]
        return
    if kind == 1:
        parts, other = name.split("."), chance.choice(list(rows)).split(".")
        parts[chance.randrange(len(parts))] = chance.choice(
            (*other, "", "\0", "a" * 300, "\u202e", "99999")
        )
        name = ".".join(parts)
    elif kind == 2:  # noqa: PLR2004
        row[0] = chance.choice(list(DTYPES.values()))
    elif kind == 3 and row[1]:  # noqa: PLR2004
        row[1][chance.randrange(len(row[1]))] = chance.choice(_SIZES)
    elif kind == 4:  # noqa: PLR2004
        row[1].insert(0, chance.choice(_SIZES))
    else:
        row[1] = row[1][::-1][: chance.randint(0, 3)]
    rows[name] = row


def mutate_npy(chance: Random, data: bytes) -> bytes:
    """Return an array in NumPy's format with another header."""
    return _NPY(chance, data)


def zip_mutator(members: Mapping[str, Sequence[Mutator]]) -> Mutator:
    """Return a change to an archive that packs it again.

    Args:
        members: By the ending of a member's name, the ways in which it is changed.
    """

    def mutate(chance: Random, data: bytes) -> bytes:
        held: list[tuple[str, bytes]] = []
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = [(each, archive.read(each)) for each in archive.namelist()]
        for _ in range(chance.choice((1, 1, 2))):
            index = chance.randrange(len(held))
            held[index] = _changed_member(chance, *held[index], members)
        if not chance.randrange(5):
            held.insert(chance.randrange(len(held)), chance.choice(held))
        return _packed(chance, held)

    return mutate


def _changed_member(
    chance: Random, name: str, content: bytes, members: Mapping[str, Sequence[Mutator]]
) -> tuple[str, bytes]:
    if not chance.randrange(7):
        return chance.choice(
            (f"{name}x", f"../{name}", "", "/etc/passwd", name[:-4], f"a/{name}")
        ), content
    changes = next((each for end, each in members.items() if name.endswith(end)), (mutate_bytes,))
    return name, chance.choice(changes)(chance, content)


def _packed(chance: Random, members: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the members as an archive, some of them compressed or announced wrongly."""
    buffer = io.BytesIO()
    kinds = (*(zipfile.ZIP_STORED,) * 12, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = chance.choice(kinds)
            archive.writestr(entry, content)
        if not chance.randrange(5):  # the directory says something else
            entry = chance.choice(archive.filelist)
            sign = chance.randrange(5)
            if sign == 0:
                entry.file_size = chance.choice((0, entry.file_size + 1, 10**12, 2**32 - 2))
            elif sign == 1:
                entry.compress_size = chance.choice((0, entry.compress_size + 1, 10**12))
            elif sign == 2:  # noqa: PLR2004
                entry.header_offset = chance.choice(
                    (0, chance.choice(archive.filelist).header_offset, 10**9)
                )
            elif sign == 3:  # noqa: PLR2004
                entry.flag_bits |= chance.choice((1, 8, 32, 64))
            else:
                entry.compress_type = chance.choice((8, 12, 14, 93, 95))
    return buffer.getvalue()
