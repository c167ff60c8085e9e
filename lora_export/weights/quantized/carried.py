"""Stored integers that a quantized graph takes over unchanged.

A graph computes ``integer · scale``, symmetric, in blocks of inputs or with one scale for each
output. Where a checkpoint is stored in the form that is asked for, its integers and scales are
written as they are, instead of those of the values that they stand for:

    same bits; groups of as many inputs as a block, one after the other (no ``desc_act``); every
    zero point 2^(b − 1)

    integer[i, o] = q[o, i] − 2^(b − 1)        scale[i // group, o] = s
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.tensors import read_all
from lora_export.weights.quantized.compressed import PackedCodec
from lora_export.weights.quantized.grouped import GptqCodec
from lora_export.weights.quantized.weight import QuantizedWeight

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.weight import Span

    Array = npt.NDArray[Any]

__all__ = ["CarriedIntegers", "carried_integers", "count_carried"]

_INT8_BITS: Final = 8


@dataclass(frozen=True)
class CarriedIntegers:
    """The integers and scales of a weight, inputs first.

    Attributes:
        weight: The weight.
        codec: Its codec.
    """

    weight: QuantizedWeight
    codec: GptqCodec | PackedCodec

    def integers(self, first: int, last: int) -> npt.NDArray[np.int8]:
        """Return the integers of inputs `first` to `last`, ``[last - first, out]``."""
        outputs = (0, self.weight.shape[0])
        q = self.codec.integers(outputs, (first, last))
        q = q if isinstance(self.codec, GptqCodec) else q.T
        return (q.astype(np.int16) - (1 << (self.codec.bits - 1))).astype(np.int8)

    def scales(self) -> Float32Array:
        """Return the scales, ``[groups, out]``."""
        outputs, groups = (0, self.weight.shape[0]), (0, self._group_count)
        found = self.codec.group_scales(outputs, groups)
        return np.broadcast_to(found, (self._group_count, self.weight.shape[0]))

    @property
    def _group_count(self) -> int:
        inputs = self.weight.shape[1]
        return -(-inputs // self.codec.group_size)


def carried_integers(source: Tensor, parameter: Parameter) -> CarriedIntegers | None:
    """Return the stored integers of a product's weight; None where the form is another.

    Args:
        source: The tensor of the base.
        parameter: The parameter, with the form in which the graph stores it.
    """
    quantized = parameter.quantized
    if quantized is None or not parameter.transposed or not isinstance(source, QuantizedWeight):
        return None
    codec = source.codec
    if not isinstance(codec, (GptqCodec, PackedCodec)) or codec.bits != quantized.bits:
        return None
    inputs = source.shape[1]
    if quantized.block_size == 0:
        fits = quantized.bits == _INT8_BITS and quantized.axis == 1 and codec.group_size >= inputs
    else:
        fits = quantized.axis == 0 and codec.group_size == quantized.block_size
    if not fits or (codec.order is not None and not _in_order(codec.order, codec.group_size)):
        return None
    return CarriedIntegers(source, codec) if _is_symmetric(source, codec) else None


def count_carried(parameters: Iterable[Parameter], sources: Mapping[str, Tensor]) -> int:
    """Return how many parameters keep the integers that the base stores."""
    return sum(
        each.name in sources and carried_integers(sources[each.name], each) is not None
        for each in parameters
    )


def _in_order(order: Tensor, group_size: int) -> bool:
    found = read_all(order)
    return bool((found == np.arange(found.size) // group_size).all())


def _is_symmetric(weight: QuantizedWeight, codec: GptqCodec | PackedCodec) -> bool:
    """Return whether every zero point is the middle of the codes."""
    if isinstance(codec, PackedCodec) and codec.zeros is None:
        return True
    outputs: Span = (0, weight.shape[0])
    groups: Span = (0, -(-weight.shape[1] // codec.group_size))
    zeros = (
        codec.zero_points(groups, outputs)
        if isinstance(codec, GptqCodec)
        else codec.zero_points(outputs, groups)
    )
    return bool((zeros == 1 << (codec.bits - 1)).all())
