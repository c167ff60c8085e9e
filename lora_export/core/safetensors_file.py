"""The safetensors format: a header read strictly, and a header to write.

The ``safetensors`` package maps the file: every page that is touched counts as resident memory, and
a file cut short under the map is a bus error. This reader validates the header against the file's
size and leaves the data to ``pread``. Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.dtypes import DTYPES, DType
from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.files import refuse_lfs_pointer
from lora_export.core.json_file import is_encodable
from lora_export.core.tensors import FileHandle, FileTensor, is_shape
from lora_export.ondevice.file_opening import open_file, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.json_file import JsonObject

__all__ = ["encode_header", "read_header"]

_HEADER_LIMIT_BYTES: Final = 1 << 24
"""A header of a hundred thousand tensors; the format allows six times as much."""

_SHOWN: Final = 100
_DATA_ALIGNMENT_BYTES: Final = 64
_LENGTH_BYTES: Final = 8
_BY_CODE: Final = {row.safetensors: row for row in DTYPES.values()}
_METADATA: Final = "__metadata__"


def read_header(path: Path) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """Return the tensors of a safetensors file, unread, and its ``__metadata__``.

    Raises:
        InputError: The file is missing, truncated, a pointer of Git LFS, or its header contradicts
            itself or the file: too long, not JSON, unknown keys, shapes that do not match the byte
            ranges, ranges that overlap, leave holes or pass the end.
        UnsupportedError: A tensor has a dtype that is not in the table.
    """
    try:
        with open_file(path) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            length_bytes = _header_length(path, stream.read(_LENGTH_BYTES), size_bytes)
            raw = stream.read(length_bytes)
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the path.") from error
    header = _parse(path, raw)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its __metadata__ is not a table of strings")
    handle = FileHandle(path)
    data_start = _LENGTH_BYTES + length_bytes
    ranges: list[tuple[int, int, str]] = []
    tensors: dict[str, FileTensor] = {}
    for name, entry in header.items():
        dtype, shape, start, end = _entry(path, name, entry)
        ranges.append((start, end, name))
        tensors[name] = FileTensor(name, dtype, shape, handle, data_start + start)
    _check_ranges(path, ranges, size_bytes - data_start)
    return tensors, metadata


def encode_header(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the bytes that open a file of these tensors, and each one's absolute offset.

    The order given is the order of the data. The header is padded with spaces so that the data
    begins on a 64-byte boundary.
    """
    header: JsonObject = {_METADATA: dict(sorted(metadata.items()))}
    starts: dict[str, int] = {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + prod(shape) * dtype.itemsize_bytes
        header[name] = {
            "dtype": dtype.safetensors,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        starts[name] = position
        position = end
    body = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-(len(body) + _LENGTH_BYTES) % _DATA_ALIGNMENT_BYTES)
    data_start = _LENGTH_BYTES + len(body)
    offsets = {name: data_start + start for name, start in starts.items()}
    return struct.pack("<Q", len(body)) + body, offsets


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{str(path)!r} is not a valid safetensors file: {what}",
        hint="The file is damaged or incomplete: download or copy it again.",
    )


def _header_length(path: Path, prefix: bytes, size_bytes: int) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise _damaged(path, f"it has only {size_bytes} bytes")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_HEADER_LIMIT_BYTES, size_bytes - _LENGTH_BYTES):
        refuse_lfs_pointer(path)
        raise _damaged(path, f"it announces a header of {length} bytes in {size_bytes} bytes")
    return int(length)


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    table = dict(pairs)
    if len(table) != len(pairs):
        msg = "a name occurs twice"
        raise ValueError(msg)
    return table


def _parse(path: Path, raw: bytes) -> JsonObject:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not readable ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table")
    for text in (*header, *_metadata_texts(header)):
        if not is_encodable(text):
            raise _damaged(path, f"{text!r} in its header has half of a character")
    return header


def _metadata_texts(header: JsonObject) -> tuple[str, ...]:
    metadata = header.get(_METADATA)
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return tuple(text for pair in pairs for text in pair if isinstance(text, str))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(path: Path, name: str, entry: object) -> tuple[DType, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"the entry of tensor {name!r} is malformed")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (
        isinstance(shape, list)
        and all(map(_is_size, shape))
        and isinstance(offsets, list)
        and len(offsets) == 2  # noqa: PLR2004  (begin and end, by the format)
        and all(map(_is_size, offsets))
    ):
        raise _damaged(path, f"shape or offsets of tensor {name!r} are malformed")
    dtype = _BY_CODE.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        msg = f"tensor {name!r} in {str(path)!r} has the unknown dtype {entry['dtype']!r}"
        raise UnsupportedError(msg, hint=f"Known: {', '.join(sorted(_BY_CODE))}.")
    if not is_shape(shape):
        raise _damaged(path, f"tensor {name!r} has the shape {str(shape)[:_SHOWN]}")
    start, end = offsets
    if end - start != prod(shape) * dtype.itemsize_bytes:
        raise _damaged(
            path,
            f"tensor {name!r} of shape {str(shape)[:_SHOWN]} and dtype {dtype.safetensors} does "
            f"not take the {end - start} bytes that its offsets give it",
        )
    return dtype, tuple(shape), start, end


def _check_ranges(path: Path, ranges: list[tuple[int, int, str]], available_bytes: int) -> None:
    """Require that the ranges tile the data exactly, as the format does."""
    position = 0
    for start, end, name in sorted(ranges):
        if start != position:
            raise _damaged(path, f"tensor {name!r} begins at byte {start} instead of {position}")
        position = end
    if position != available_bytes:
        raise _damaged(
            path, f"its tensors take {position} bytes, but {available_bytes} follow the header"
        )
