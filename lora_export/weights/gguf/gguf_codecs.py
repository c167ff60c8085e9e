"""The arithmetic of tensors in GGUF: blocks, and what llama.cpp's converter did to the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_export.core.dtypes import Float32Array, to_float32
from lora_export.core.gguf_library import dequantize
from lora_export.weights.quantized.panels import read_panel
from lora_export.weights.quantized.weight import Turned

if TYPE_CHECKING:
    from lora_export.core.dtypes import DType
    from lora_export.core.gguf_library import GgmlType
    from lora_export.core.tensors import FileTensor
    from lora_export.weights.quantized.weight import Codec, Span

__all__ = ["Blocks", "Floats", "Matrix", "Part", "Reordered", "ReorderedVector", "Shifted"]


@dataclass(frozen=True)
class Blocks:
    """Rows of blocks; a vector is one row."""

    stored: Matrix
    kind: GgmlType

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        values, size = self.kind.values, self.kind.count_bytes
        first, last = columns[0] // values, -(-columns[1] // values)
        raw = read_panel(self.stored, rows, (first * size, last * size))
        found = dequantize(np.ascontiguousarray(raw).reshape(-1, size), self.kind)
        whole = found.reshape(rows[1] - rows[0], -1)
        return whole[:, columns[0] - first * values : columns[1] - first * values]


@dataclass(frozen=True)
class Floats:
    """Rows of floats."""

    stored: Matrix

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        return to_float32(read_panel(self.stored, rows, columns))


@dataclass(frozen=True)
class Matrix:
    """A tensor of one or two axes as a matrix."""

    whole: FileTensor

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.whole.name

    @property
    def dtype(self) -> DType:
        """The tensor's dtype."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``[rows, columns]``."""
        return (1, *self.whole.shape)[-2:]

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        self.whole.read_into(buffer, offset_bytes)


@dataclass(frozen=True)
class Reordered:
    """The rows of heads in halves, of heads whose rows are stored as neighbours.

    Row ``h·d + c·d/2 + i`` of the result is row ``h·d + 2i + c`` of the file.
    """

    codec: Codec
    head_rows: int

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        d = self.head_rows
        first, last = rows[0] // d, -(-rows[1] // d)
        whole = self.codec.region((first * d, last * d), columns)
        heads = whole.reshape(last - first, d // 2, 2, -1).swapaxes(1, 2)
        return heads.reshape(whole.shape)[rows[0] - first * d : rows[1] - first * d]


@dataclass(frozen=True)
class Shifted:
    """Values that are stored plus one."""

    codec: Codec

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        return self.codec.region(rows, columns) - np.float32(1)


@dataclass(frozen=True)
class ReorderedVector:
    """A vector, reordered as the rows of heads are."""

    codec: Codec
    head_rows: int

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        upright = Turned(self.codec)
        return Reordered(upright, self.head_rows).region(columns, rows).T


@dataclass(frozen=True)
class Part:
    """A stored tensor under the name that the fingerprint has for it."""

    name: str
    whole: FileTensor

    @property
    def dtype(self) -> DType:
        """The tensor's dtype."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.whole.shape

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the tensor's bytes from `offset_bytes` on."""
        self.whole.read_into(buffer, offset_bytes)
