"""Stored integers that a quantized graph takes over unchanged.

A graph computes ``(integer − zero point) · scale``, in blocks of inputs or with one scale for each
output. Where a checkpoint is stored in the form that is asked for, its integers, scales and zero
points are written as they are, instead of those of the values that they stand for:

    same bits; groups of as many inputs as a block, one after the other (no ``desc_act``); zero
    points of 2^(b − 1), or a graph that has zero points

    integer[i, o] = q[o, i] − 2^(b − 1)        scale[i // group, o] = s
    zero point[i // group, o] = z − 2^(b − 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.tensors import read_all
from lora_export.weights.quantized.compressed import PackedCodec
from lora_export.weights.quantized.grouped import AwqCodec, GptqCodec
from lora_export.weights.quantized.weight import QuantizedWeight

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.weight import Span

    Array = npt.NDArray[Any]
    GroupedCodec = AwqCodec | GptqCodec | PackedCodec

__all__ = ["CarriedIntegers", "carried_integers", "stores_zero_points"]

_INT8_BITS: Final = 8


@dataclass(frozen=True)
class CarriedIntegers:
    """The integers, scales and zero points of a weight, inputs first.

    Attributes:
        weight: The weight.
        codec: Its codec.
    """

    weight: QuantizedWeight
    codec: GroupedCodec

    def integers(self, first: int, last: int) -> npt.NDArray[np.int8]:
        """Return the integers of inputs `first` to `last`, ``[last - first, out]``."""
        q = self.codec.integers(self._outputs, (first, last))
        return self._signed(q.T if isinstance(self.codec, PackedCodec) else q)

    def scales(self) -> Float32Array:
        """Return the scales, ``[groups, out]``."""
        found = self.codec.group_scales(self._outputs, self._groups)
        return np.broadcast_to(found, (self._groups[1], self._outputs[1]))

    def zero_points(self) -> npt.NDArray[np.int8]:
        """Return the zero points, ``[groups, out]``; 0 where a stored one is 2^(b − 1)."""
        return self._signed(_zero_points(self.codec, self._outputs, self._groups))

    def _signed(self, codes: Array) -> npt.NDArray[np.int8]:
        return (codes.astype(np.int16) - (1 << (self.codec.bits - 1))).astype(np.int8)

    @property
    def _outputs(self) -> Span:
        return (0, self.weight.shape[0])

    @property
    def _groups(self) -> Span:
        return (0, -(-self.weight.shape[1] // self.codec.group_size))


def carried_integers(source: Tensor, parameter: Parameter) -> CarriedIntegers | None:
    """Return the stored integers of a product's weight; None where the form is another.

    Args:
        source: The tensor of the base.
        parameter: The parameter, with the form in which the graph stores it.
    """
    found = _in_form(source, parameter)
    if found is None or parameter.quantized is None:
        return None
    return found if parameter.quantized.zero_points or _is_symmetric(found) else None


def stores_zero_points(source: Tensor, parameter: Parameter) -> bool:
    """Return whether a product's weight is stored in blocks as the graph's, but with zero points.

    Args:
        source: The tensor of the base.
        parameter: The parameter, with the form in which the graph stores it.
    """
    found = _in_form(source, parameter)
    if found is None or parameter.quantized is None or parameter.quantized.block_size == 0:
        return False
    even = prod(parameter.quantized.scales_shape(parameter.stored_shape)) % 2 == 0
    return even and not _is_symmetric(found)


def _in_form(source: Tensor, parameter: Parameter) -> CarriedIntegers | None:
    """Return the integers of a weight in the graph's bits and blocks, whatever its zero points."""
    quantized = parameter.quantized
    if (
        quantized is None
        or quantized.floats is not None
        or not parameter.transposed
        or not isinstance(source, QuantizedWeight)
    ):
        return None
    codec = source.codec
    if not isinstance(codec, AwqCodec | GptqCodec | PackedCodec) or codec.bits != quantized.bits:
        return None
    inputs = source.shape[1]
    if quantized.block_size == 0:
        fits = quantized.bits == _INT8_BITS and quantized.axis == 1 and codec.group_size >= inputs
    else:
        fits = quantized.axis == 0 and codec.group_size == quantized.block_size
    order: Tensor | None = codec.order
    if not fits or (order is not None and not _in_order(order, codec.group_size)):
        return None
    return CarriedIntegers(source, codec)


def _in_order(order: Tensor, group_size: int) -> bool:
    found = read_all(order)
    return bool((found == np.arange(found.size) // group_size).all())


def _is_symmetric(found: CarriedIntegers) -> bool:
    """Return whether every zero point is the middle of the codes."""
    codec = found.codec
    if isinstance(codec, PackedCodec) and codec.zeros is None:
        return True
    return not found.zero_points().any()


def _zero_points(codec: GroupedCodec, outputs: Span, groups: Span) -> Array:
    """Return zero points as they are stored, ``[groups, out]``."""
    if isinstance(codec, PackedCodec):
        return codec.zero_points(outputs, groups).T
    return codec.zero_points(groups, outputs)
