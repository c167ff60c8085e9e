"""Integers that compressed-tensors packed into 32-bit words (``pack-quantized``).

    M.weight_packed      int32 [out, ⌈in · b / 32⌉]: a stream of b bits along the inputs
    M.weight_shape       int64 or int32 [2]: out, in
    M.weight_scale       floats [out, groups], [out, 1] or [1]
    M.weight_zero_point  int32 [⌈out · b / 32⌉, groups]: a stream along the outputs, or absent
    M.weight_g_idx       int32 [in]: the group of each input, where groups do not follow each other

    value[o, i] = (q[o, i] − z[o, g(i)]) · s[o, g(i)]       z = 2^(b − 1) without zero points

Integers are stored with 2^(b − 1) added, zero points too. The product is rounded once to the dtype
of the model. Source: compressed-tensors ``compressors/pack_quantized/base.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.tensors import MemoryTensor, read_all
from lora_export.weights.quantized.panels import (
    damaged,
    read_elements,
    read_panel,
    read_scales,
    unpack_stream,
    word_span,
)
from lora_export.weights.quantized.scaled import COMPRESSED
from lora_export.weights.quantized.weight import Form, QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.stored import Stored
    from lora_export.weights.quantized.weight import Span

    Array = npt.NDArray[Any]

__all__ = ["PackedCodec", "find_packed_weights"]

_PACKED: Final = ".weight_packed"
_BITS: Final = (4, 8, 2, 3, 6, 5, 7, 1)
"""The numbers of bits, tried in this order against the width of a row."""

_WORD_BITS: Final = 32
_MATRIX: Final = 2


@dataclass(frozen=True)
class PackedCodec:
    """A stream of codes along the inputs of each output.

    Attributes:
        codes: ``weight_packed``.
        scales: ``weight_scale`` as a matrix.
        zeros: ``weight_zero_point``; None where integers are symmetric.
        order: ``weight_g_idx``; None where groups follow each other.
        bits: The bits of a code.
        group_size: The inputs of a group, where there is no `order`.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None
    bits: int
    group_size: int

    def region(self, rows: Span, columns: Span) -> Float32Array:
        """Return the values of a part in float32, ``[rows, columns]``."""
        groups = self.groups(columns)
        first, last = int(groups.min()), int(groups.max()) + 1
        own = rows if self.scales.shape[0] > 1 else (0, 1)
        scales = read_scales(self.scales, own, (first, last))[:, groups - first]
        exact = self.integers(rows, columns).astype(np.float32)
        exact -= self.zero_points(rows, (first, last)).astype(np.float32)[:, groups - first]
        exact *= scales
        return exact

    def integers(self, rows: Span, columns: Span) -> Array:
        """Return the stored codes of outputs `rows` and inputs `columns`, ``[rows, columns]``."""
        words, first = word_span(columns, self.bits)
        packed = np.ascontiguousarray(read_panel(self.codes, rows, words).T)
        stream = unpack_stream(packed, self.bits)
        return stream[columns[0] - first : columns[1] - first].T

    def zero_points(self, rows: Span, groups: Span) -> Array:
        """Return zero points as they are added to codes, ``[rows, groups]``."""
        if self.zeros is None:
            shape = (rows[1] - rows[0], groups[1] - groups[0])
            return np.full(shape, 1 << (self.bits - 1), np.uint8)
        words, first = word_span(rows, self.bits)
        words = (words[0], min(words[1], self.zeros.shape[0]))
        packed = np.ascontiguousarray(read_panel(self.zeros, words, groups))
        return unpack_stream(packed, self.bits)[rows[0] - first : rows[1] - first]

    def group_scales(self, rows: Span, groups: Span) -> Float32Array:
        """Return scales, ``[groups, rows]``, or ``[groups, 1]`` where all outputs share one."""
        return read_scales(self.scales, rows if self.scales.shape[0] > 1 else (0, 1), groups).T

    def groups(self, columns: Span) -> Array:
        """Return the group of each input.

        Raises:
            CheckpointError: ``weight_g_idx`` names a group that does not exist.
        """
        if self.order is None:
            return np.arange(*columns) // self.group_size
        found = read_elements(self.order, *columns)
        count = self.scales.shape[1]
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < count:
            wrong = found[(found < 0) | (found >= count)][0]
            msg = f"tensor {self.order.name!r} of the base names group {wrong} of {count}"
            raise damaged(msg)
        return found


def find_packed_weights(stored: Stored) -> Iterator[QuantizedWeight]:
    """Yield the weights that are packed along their inputs.

    Raises:
        CheckpointError: A part is missing or of another shape.
    """
    for name in stored.tensors:
        if name.endswith(_PACKED):
            yield _packed(stored, name.removesuffix("_packed"))


def _packed(stored: Stored, name: str) -> QuantizedWeight:
    codes = stored.part(f"{name}_packed", "int32")
    shape_tensor = stored.tensors.get(f"{name}_shape")
    if shape_tensor is None or shape_tensor.shape != (_MATRIX,) or shape_tensor.dtype.floating:
        raise damaged(f"the base has no tensor {f'{name}_shape'!r} of two integers")
    outputs, inputs = (int(size) for size in read_all(shape_tensor))
    if len(codes.shape) != _MATRIX or min(outputs, inputs) <= 0 or codes.shape[0] != outputs:
        msg = f"tensor {codes.name!r} of the base has the shape {list(codes.shape)}"
        raise damaged(f"{msg}; {name}_shape says {[outputs, inputs]}")
    bits = next((b for b in _BITS if -(-inputs * b // _WORD_BITS) == codes.shape[1]), None)
    if bits is None:
        msg = f"tensor {codes.name!r} of the base has {codes.shape[1]} words a row"
        raise damaged(f"{msg}, which hold {inputs} inputs in no number of bits up to 8")
    given = stored.part(f"{name}_scale")
    scales = _scales(given, outputs)
    parts = [codes, shape_tensor, given]
    groups = scales.shape[1]
    zeros = stored.tensors.get(f"{name}_zero_point")
    if zeros is not None:
        wanted = (-(-outputs * bits // _WORD_BITS), groups)
        parts.append(stored.part(zeros.name, "int32", wanted))
    order = stored.tensors.get(f"{name}_g_idx")
    if order is not None:
        parts.append(stored.part(order.name, "int32", (inputs,)))
    size = -(-inputs // groups)
    form = Form(COMPRESSED, f"int{bits}", bits, size if groups > 1 else 0)
    codec = PackedCodec(codes, scales, zeros, order, bits, size)
    dtype = stored.dtype or scales.dtype
    return QuantizedWeight(name, dtype, (outputs, inputs), form, tuple(parts), codec)


def _scales(given: Tensor, outputs: int) -> Tensor:
    """Return scales as a matrix ``[out or 1, groups]``."""
    shape = given.shape
    if len(shape) == _MATRIX and shape[0] in {1, outputs} and shape[1] > 0:
        return given
    if shape in {(1,), (outputs,)}:
        return MemoryTensor(given.name, given.dtype, read_all(given).reshape(-1, 1))
    msg = f"tensor {given.name!r} of the base has the shape {list(shape)}"
    raise damaged(f"{msg}; the weight has {outputs} outputs")
