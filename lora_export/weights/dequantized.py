"""Quantized tensors of an export as the float32 values that they stand for, read lazily."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES, DType, Float32Array, to_float32
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.quantization import integers_name, scales_name, zero_points_name
from lora_export.core.tensors import bytes_of
from lora_export.weights.quantization.float4_rounding import float4_values, unpack_codes
from lora_export.weights.quantization.packing import unpack_int4

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from lora_export.core.parameters import Parameter
    from lora_export.core.quantization import Quantized
    from lora_export.core.tensors import Tensor

__all__ = ["DequantizedTensor", "dequantized_tensor"]

_HALF_BYTE: Final = 4
_ITEM_BYTES: Final = 4


@dataclass(frozen=True)
class DequantizedTensor:
    """``(integer − zero point) · scale`` in float32, computed for the rows that are read.

    Of four-bit floats ``VALUES[code] · scale``: their values stand where integers do.

    Attributes:
        name: The parameter's name.
        shape: Its shape, in the graph's layout.
        quantized: How it is stored.
        integers: Its integers; four bits packed as ``U8 [n / 2]``.
        scales: Its scales.
        zeros: Its zero points, stored as the integers are; None where they are 0.
    """

    name: str
    shape: tuple[int, ...]
    quantized: Quantized
    integers: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)
    zeros: Tensor | None = field(default=None, repr=False)

    @property
    def dtype(self) -> DType:
        """float32."""
        return DTYPES["float32"]

    def read_into(self, buffer: memoryview, offset_bytes: int) -> None:
        """Fill `buffer` with the values' bytes from `offset_bytes` on."""
        if not len(buffer):
            return
        width = self.shape[1] * _ITEM_BYTES
        first, last = offset_bytes // width, -(-(offset_bytes + len(buffer)) // width)
        raw = bytes_of(self.rows(first, last))
        start = offset_bytes - first * width
        buffer[:] = raw[start : start + len(buffer)]

    def rows(self, first: int, last: int) -> Float32Array:
        """Return the values of rows `first` to `last`, ``[last - first, N]``."""
        exact = self.integers_of(first, last).astype(np.float32)
        if self.zeros is not None:
            exact -= self.zeros_of(first, last)
        return exact * self.scales_of(first, last)

    def zeros_of(self, first: int, last: int) -> npt.NDArray[np.int8]:
        """Return the zero points of rows `first` to `last`, for each value; 0 without any."""
        if self.zeros is None:
            return np.zeros(1, np.int8)
        size = self.quantized.block_size
        begin, end = first // size, -(-last // size)
        whole = self._unpacked(self.zeros, begin, end)
        return whole[np.arange(first, last) // size - begin]

    def scales_of(self, first: int, last: int) -> Float32Array:
        """Return the scales of rows `first` to `last`, for each value or to be broadcast to it."""
        form = self.quantized
        if form.floats is not None:
            return np.repeat(self._scales(first, last), form.block_size, 1)
        if form.block_size == 0:
            scales = self._scales(0, self.scales.shape[0])
            return scales[first:last, None] if form.axis == 0 else scales
        begin, end = first // form.block_size, -(-last // form.block_size)
        return self._scales(begin, end)[np.arange(first, last) // form.block_size - begin]

    def integers_of(self, first: int, last: int) -> npt.NDArray[Any]:
        """Return the integers of rows `first` to `last`, or the values of codes, ``[…, N]``."""
        found = self._unpacked(self.integers, first, last)
        floats = self.quantized.floats
        return found if floats is None else float4_values(floats)[found]

    def _unpacked(self, stored: Tensor, first: int, last: int) -> npt.NDArray[np.int8]:
        """Return rows of integers that are stored in the scheme's bits."""
        columns = self.shape[1]
        if self.quantized.bits != _HALF_BYTE:
            q = np.empty((last - first, columns), np.int8)
            stored.read_into(bytes_of(q), first * columns)
            return q
        start, end = first * columns, last * columns
        packed = np.empty(-(-end // 2) - start // 2, np.uint8)
        stored.read_into(bytes_of(packed), start // 2)
        integers = self.quantized.floats is None
        flat = (
            unpack_int4(packed, (2 * packed.size,))
            if integers
            else unpack_codes(packed).view(np.int8)
        )
        skipped = start % 2
        return flat[skipped : skipped + end - start].reshape(-1, columns)

    def _scales(self, first: int, last: int) -> Float32Array:
        rest = self.scales.shape[1:]
        values: npt.NDArray[Any] = np.empty((last - first, *rest), self.scales.dtype.numpy)
        row_bytes = prod(rest) * self.scales.dtype.itemsize_bytes
        self.scales.read_into(bytes_of(values), first * row_bytes)
        return to_float32(values)


def dequantized_tensor(
    parameter: Parameter, stored: Mapping[str, Tensor], shape: tuple[int, ...] | None = None
) -> DequantizedTensor | None:
    """Return the values of a quantized parameter, None where a file does not hold it.

    Args:
        parameter: The parameter, with its scheme.
        stored: The tensors of a weight file.
        shape: Its shape in the graph's layout, where that is not the base's.

    Raises:
        ExportDirectoryError: The file's tensors are not those of such a parameter.
    """
    quantized, name = parameter.quantized, parameter.name
    integers, scales = (stored.get(each(name)) for each in (integers_name, scales_name))
    if quantized is None or integers is None or scales is None:
        return None
    shape = shape or parameter.stored_shape
    packed = (quantized.integers_bytes(shape),)
    integers_shape = packed if quantized.bits == _HALF_BYTE else shape
    wanted = (integers_shape, quantized.scales_shape(shape))
    if (integers.shape, scales.shape) != wanted:
        msg = (
            f"{name!r} is stored as {list(integers.shape)} and scales {list(scales.shape)}; "
            f"{quantized.scheme} of {list(shape)} is {list(wanted[0])} and {list(wanted[1])}"
        )
        raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
    zeros = stored.get(zero_points_name(name)) if quantized.zero_points else None
    if quantized.zero_points:
        half = quantized.bits == _HALF_BYTE
        due = (quantized.zero_points_bytes(shape),) if half else quantized.scales_shape(shape)
        if zeros is None or zeros.shape != due:
            msg = f"{name!r} has zero points of another shape than its scales, or none"
            raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
    return DequantizedTensor(name, shape, quantized, integers, scales, zeros)
