"""A weight of a quantized checkpoint, as a tensor of the floats that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from lora_export.core import halves
from lora_export.core.dtypes import Float32Array, cast
from lora_export.core.errors import CheckpointError
from lora_export.core.tensors import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.core.dtypes import DType
    from lora_export.core.tensors import Tensor

__all__ = ["Codec", "Form", "QuantizedWeight", "Span", "Turned", "turned"]

_BLOCK_ELEMENTS: Final = 1 << 19

Span = tuple[int, int]
"""The first index, and the one behind the last."""


@dataclass(frozen=True, order=True)
class Form:
    """The form in which a weight is stored.

    Attributes:
        method: ``bitsandbytes``, ``gptq`` … as ``quant_method`` in a ``config.json`` has it.
        scheme: What is stored: ``nf4``, ``int4``, ``fp8`` …
        bits: The bits of a code.
        group_size: How many values share a scale; 0 for one scale per row or tensor.
    """

    method: str
    scheme: str
    bits: int
    group_size: int = 0


class Codec(Protocol):
    """The arithmetic of one stored weight, seen as a matrix of its innermost rows."""

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""


@dataclass(frozen=True)
class Turned:
    """The transpose of a weight."""

    codec: Codec

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        return self.codec.region(columns, rows).T


@dataclass(frozen=True)
class QuantizedWeight:
    """The values of a weight, computed in float32 and rounded once to `dtype`, as they are read.

    Attributes:
        name: The parameter's name, as a checkpoint of floats has it.
        dtype: The dtype of the values.
        shape: Their shape.
        form: The form in which it is stored.
        parts: The tensors that it is stored as.
        codec: Computes its values from them.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    form: Form
    parts: tuple[Tensor, ...] = field(repr=False)
    codec: Codec = field(repr=False)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the bytes of the values from `offset_bytes` on."""
        size = self.dtype.itemsize_bytes
        first, skipped = divmod(offset_bytes, size)
        last = -(-(offset_bytes + len(buffer)) // size)
        done = 0
        for values in self._runs(first, last):
            raw = bytes_of(cast(values, self.dtype, name=self.name))[skipped:]
            count = min(len(raw), len(buffer) - done)
            buffer[done : done + count] = raw[:count]
            done, skipped = done + count, 0

    def read_columns(self, first: int, last: int) -> npt.NDArray[Any]:
        """Return columns `first` to `last` of all innermost rows, in `dtype`."""
        rows = prod(self.shape[:-1])
        found = np.empty((rows, last - first), self.dtype.numpy)
        step = max(1, _BLOCK_ELEMENTS // max(1, last - first))
        for start in range(0, rows, step):
            span = (start, min(rows, start + step))
            values = self._region(span, (first, last))
            found[span[0] : span[1]] = cast(values, self.dtype, name=self.name)
        return found

    def _runs(self, first: int, last: int) -> Iterator[Float32Array]:
        """Yield the values of elements `first` to `last` in order: parts of rows, whole rows."""
        width = self.shape[-1]
        step = max(1, _BLOCK_ELEMENTS // width)
        at = first
        while at < last:
            row, column = divmod(at, width)
            if column or last - at < width:
                end = min(width, column + last - at)
                yield self._region((row, row + 1), (column, end))
                at += end - column
            else:
                count = min(step, (last - at) // width)
                yield self._region((row, row + count), (0, width))
                at += count * width

    def _region(self, rows: Span, columns: Span) -> Float32Array:
        """Return a part of the values.

        Raises:
            CheckpointError: One of them is no finite number, as no scale and no code may be.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(self.codec.region(rows, columns))
        if not halves.all_finite(values):
            msg = f"the weight {self.name!r} of the base has a value that is not finite"
            raise CheckpointError(msg, hint="The checkpoint is damaged: copy it again.")
        return values


def turned(weight: QuantizedWeight) -> QuantizedWeight:
    """Return the transpose of a matrix.

    Quantizers replace a ``Conv1D``, which holds its weight as ``[in, out]``, by a linear layer of
    their own, which holds it as ``[out, in]``.
    """
    return replace(weight, shape=weight.shape[::-1], codec=Turned(weight.codec))
