"""The GGUF container: a header read strictly, the tensors left to ``pread``.

The ``gguf`` package maps the file and trusts the counts in it: a few bytes keep it busy for hours.
This reader checks each count against the bytes that are there. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lora_export.core.dtypes import DTYPES, DType
from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.tensors import FileHandle, FileTensor, is_shape
from lora_export.ondevice.file_opening import open_file, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["BlockSizes", "read_gguf", "read_gguf_blocks", "read_gguf_metadata"]

BlockSizes: TypeAlias = "Mapping[int, tuple[int, int]]"
"""The values and the bytes of a block, by the number of a GGML type."""

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_HEADER_STEPS_BYTES: Final = (1 << 22, 1 << 24, 1 << 26)
"""How much of a file is read for its header; vocabularies in it have up to 20 MB."""
_AXES_LIMIT: Final = 4
_DEFAULT_ALIGNMENT_BYTES: Final = 32
_ALIGNMENT_LIMIT_BYTES: Final = 1 << 16
_STRING, _ARRAY = 8, 9
_SCALARS: Final[dict[int, str]] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""How a value of each type is packed."""

_DTYPES: Final[dict[int, DType]] = {
    0: DTYPES["float32"],
    1: DTYPES["float16"],
    28: DTYPES["float64"],
    30: DTYPES["bfloat16"],
}
"""The types of tensors that are plain floating-point numbers."""


def read_gguf(path: Path) -> tuple[dict[str, FileTensor], dict[str, Any]]:
    """Return the tensors of a GGUF file of floats, unread, and its metadata; arrays in it are None.

    The shape of a tensor is in the order of its bytes: the reverse of GGUF's own.

    Raises:
        InputError: The file is missing, truncated, or its header contradicts itself or the file.
        UnsupportedError: A tensor is quantized, or the version is unknown.
    """
    tensors, kinds, metadata = _read(path, {})
    for name in tensors:
        if kinds[name] not in _DTYPES:
            msg = f"tensor {name[:80]!r} in {str(path)!r} is quantized (GGML type {kinds[name]})"
            raise UnsupportedError(msg, hint="Convert the adapter with --outtype f32, f16 or bf16.")
    return tensors, metadata


def read_gguf_blocks(
    path: Path, sizes: BlockSizes
) -> tuple[dict[str, FileTensor], dict[str, int], dict[str, Any]]:
    """Return the tensors of a GGUF file, unread, their GGML types, and its metadata.

    A tensor of a type in `sizes` is uint8: the bytes of its blocks, which run along its rows. For
    ``[…, n]`` values in blocks of k values and b bytes it is ``[…, n / k · b]``.

    Args:
        path: The file.
        sizes: The sizes of the blocks of each type that is read.

    Raises:
        InputError: The file is missing, truncated, or its header contradicts itself or the file.
        UnsupportedError: A tensor of another type, or the version is unknown.
    """
    tensors, kinds, metadata = _read(path, sizes)
    for name in tensors:
        if kinds[name] not in _DTYPES and kinds[name] not in sizes:
            msg = f"tensor {name[:80]!r} in {str(path)!r} has the GGML type {kinds[name]}"
            raise UnsupportedError(msg, hint=f"Types that are read: {_numbers(sizes)}.")
    return tensors, kinds, metadata


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file; arrays in it are None.

    Raises:
        InputError: The file is missing, truncated, or its header contradicts itself or the file.
        UnsupportedError: The version is unknown.
    """
    return _read(path, {})[2]


def _numbers(sizes: BlockSizes) -> str:
    return ", ".join(map(str, sorted({*_DTYPES, *sizes})))


def _read(
    path: Path, sizes: BlockSizes
) -> tuple[dict[str, FileTensor], dict[str, int], dict[str, Any]]:
    """Return tensors, types and metadata; a tensor of an unknown type has no bytes."""
    try:
        with open_file(path) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            raw = b""
            for limit in _HEADER_STEPS_BYTES:
                raw += stream.read(limit - len(raw))
                cursor = _Cursor(path, raw)
                try:
                    metadata, entries = _header(cursor)
                    break
                except _TooShortError as error:
                    if len(raw) < limit or limit == _HEADER_STEPS_BYTES[-1]:
                        raise cursor.damaged("its header ends too early") from error
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the path.") from error
    data_start = _aligned(cursor, metadata)
    kinds = {name: kind for name, _, kind, _ in entries}
    return _tensors(cursor, entries, data_start, size_bytes, sizes), kinds, metadata


def _header(cursor: _Cursor) -> tuple[dict[str, Any], list[_Entry]]:
    """Return the metadata and the entries of the tensors."""
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise cursor.damaged("it does not begin with GGUF")
    version = cursor.number("<I")
    if version not in _VERSIONS:
        msg = f"{str(cursor.path)!r} has the GGUF version {version}"
        raise UnsupportedError(msg, hint="Versions 2 and 3 in little-endian order are read.")
    tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):  # each takes bytes: a wrong count ends with the file
        key = cursor.text()
        if key in metadata:
            raise cursor.damaged(f"the key {key[:80]!r} occurs twice")
        metadata[key] = cursor.value()
    return metadata, [_entry(cursor) for _ in range(tensor_count)]


class _TooShortError(Exception):
    """The bytes that were read end before the header does."""


@dataclass
class _Cursor:
    """A place in the header; moving past its end is an error."""

    path: Path
    raw: bytes
    position: int = 0

    def damaged(self, what: str) -> InputError:
        return InputError(
            f"{str(self.path)!r} is not a valid GGUF file: {what}",
            hint="The file is damaged or incomplete: download or copy it again.",
        )

    def take(self, count_bytes: int) -> bytes:
        if count_bytes > len(self.raw) - self.position:
            raise _TooShortError
        start, self.position = self.position, self.position + count_bytes
        return self.raw[start : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("<Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a name in it is not UTF-8") from error

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(self._code(kind))
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            for _ in range(count):  # each takes bytes
                self.take(self.number("<Q"))
        else:
            self.take(count * struct.calcsize(self._code(kind)))
        return None

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged(f"a value in it has the unknown type {kind}")
        return _SCALARS[kind]


_Entry: TypeAlias = "tuple[str, tuple[int, ...], int, int]"
"""The name, shape, GGML type and offset of a tensor."""


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.text()
    axes = cursor.number("<I")
    if not 1 <= axes <= _AXES_LIMIT:
        raise cursor.damaged(f"tensor {name[:80]!r} has {axes} axes")
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
    if not is_shape(shape):
        raise cursor.damaged(f"tensor {name[:80]!r} has the shape {list(shape)}")
    return name, shape, cursor.number("<I"), cursor.number("<Q")


def _aligned(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    """Return where the data begins: after the header, on a multiple of the alignment."""
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 1 <= alignment <= _ALIGNMENT_LIMIT_BYTES
    ):
        raise cursor.damaged(f"its alignment is {str(alignment)[:40]!r}")
    return cursor.position + -cursor.position % alignment


def _tensors(
    cursor: _Cursor, entries: list[_Entry], data_start: int, size_bytes: int, sizes: BlockSizes
) -> dict[str, FileTensor]:
    """Return the tensors, none of which passes the end or lies over another."""
    handle = FileHandle(cursor.path)
    tensors: dict[str, FileTensor] = {}
    position = data_start
    for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
        dtype = _DTYPES.get(kind, DTYPES["uint8"])
        stored = shape
        if kind in sizes:
            values, count_bytes = sizes[kind]
            if shape[-1] % values:
                what = f"tensor {name[:80]!r} has rows of {shape[-1]} values in blocks of {values}"
                raise cursor.damaged(what)
            stored = (*shape[:-1], shape[-1] // values * count_bytes)
        elif kind not in _DTYPES:
            stored = (0,)
        start = data_start + offset
        end = start + prod(stored) * dtype.itemsize_bytes
        if name in tensors:
            raise cursor.damaged(f"tensor {name[:80]!r} occurs twice")
        if start < position or end > size_bytes:
            raise cursor.damaged(f"tensor {name[:80]!r} overlaps another or passes the end")
        tensors[name] = FileTensor(name, dtype, stored, handle, start)
        position = end
    return tensors
