"""Values of tensors that lie in a file beside their graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import onnx

from lora_export.core.errors import ExportDirectoryError

__all__ = ["SideBySide", "Source", "external_source", "place_outside"]

_INLINE = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_HINT: Final = "The export is damaged: copy or export it again."


@dataclass(frozen=True)
class Source:
    """A range of bytes of a weight file.

    Attributes:
        location: The file, relative to the graph's folder.
        offset_bytes: Where the range begins there.
        length_bytes: Its length.
    """

    location: str
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True)
class SideBySide:
    """A matrix whose columns are those of several: row i is their rows i, one after another.

    Attributes:
        sources: The matrices, in order.
        rows: How many rows each has.
    """

    sources: tuple[Source, ...]
    rows: int

    @property
    def length_bytes(self) -> int:
        """The bytes of the matrix."""
        return sum(each.length_bytes for each in self.sources)


def place_outside(
    tensor: onnx.TensorProto, location: str, offset_bytes: int, length_bytes: int
) -> None:
    """Point a tensor at a range of bytes of a file; mutates `tensor`.

    Its own value goes, inline or in another file; its dtype and shape stay.

    Args:
        tensor: The tensor.
        location: The file, relative to the graph's folder.
        offset_bytes: Where the range begins.
        length_bytes: Its length.

    Reference: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
    """
    for field in ("raw_data", *_INLINE):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (
        ("location", location),
        ("offset", offset_bytes),
        ("length", length_bytes),
    ):
        tensor.external_data.add(key=key, value=str(value))


def external_source(tensor: onnx.TensorProto) -> Source:
    """Return the range of bytes that a tensor outside its graph is stored in.

    Raises:
        ExportDirectoryError: What the tensor says is not a range of bytes.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    texts = entries.get("offset", "0"), entries.get("length", str(_size_bytes(tensor)))
    if "location" not in entries or not all(t.isascii() and t.isdecimal() for t in texts):
        msg = f"the graph does not say where the value of {tensor.name!r} lies"
        raise ExportDirectoryError(msg, hint=_HINT)
    return Source(entries["location"], int(texts[0]), int(texts[1]))


def _size_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a value of a whole number of bytes for each element."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(prod(tensor.dims)) * int(dtype.itemsize)
