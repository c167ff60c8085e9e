"""Codes of four-bit floats that a graph takes over unchanged.

``MatMulBnb4`` has the layout of bitsandbytes: codes of ``[out, in]`` two to a byte, the first in
the high half, and a scale for each block. Codes are carried where the table of values is the
operator's and blocks end with the rows; a nested absmax becomes the float32 that it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_export.core.four_bit_floats import FLOAT4_VALUES, float4_of
from lora_export.core.quantization import BLOCK_SIZES
from lora_export.weights.quantized.bitsandbytes import FourBitCodec
from lora_export.weights.quantized.panels import read_elements
from lora_export.weights.quantized.weight import QuantizedWeight, Turned

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter
    from lora_export.core.tensors import Tensor

__all__ = ["CarriedCodes", "carried_codes", "reason_not_to_carry"]

_MATRIX = 2


@dataclass(frozen=True)
class CarriedCodes:
    """The codes and scales of a weight, outputs first."""

    codec: FourBitCodec
    blocks: int

    def packed(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Return bytes `first` to `last` of the codes."""
        return np.asarray(read_elements(self.codec.codes, first, last), np.uint8)

    def scales(self) -> Float32Array:
        """Return the scales in C order, ``[blocks]``."""
        return self.codec.scales(0, self.blocks)


def carried_codes(source: Tensor, parameter: Parameter) -> CarriedCodes | None:
    """Return the stored codes of a product's weight; None where the form is another.

    Args:
        source: The tensor of the base.
        parameter: The parameter, with the form in which the graph stores it.
    """
    quantized = parameter.quantized
    if quantized is None or quantized.floats is None:
        return None
    if not isinstance(source, QuantizedWeight) or source.shape != parameter.shape:
        return None
    if reason_not_to_carry(source, quantized.floats):
        return None
    codec = _codec_of(source)
    if codec is None or parameter.transposed != isinstance(source.codec, Turned):
        return None
    if codec.block_size != quantized.block_size:
        return None
    outputs, inputs = parameter.stored_shape
    return CarriedCodes(codec, outputs * inputs // codec.block_size)


def reason_not_to_carry(source: Tensor, scheme: str) -> str:
    """Return why a graph cannot take over what the base stores of a matrix; "" where it can.

    Args:
        source: The tensor of the base.
        scheme: ``nf4`` or ``fp4``.
    """
    if not isinstance(source, QuantizedWeight):
        return f"the base stores it in {source.dtype.name}"
    floats, codec = float4_of(scheme), _codec_of(source)
    if floats is None or codec is None or source.form.scheme != floats:
        return f"the base stores it as {source.form.scheme}"
    size = codec.block_size
    own = np.array(FLOAT4_VALUES[floats], np.float32)
    reasons = {
        f"it has {len(source.shape)} axes": len(source.shape) != _MATRIX,
        f"the base stores it in blocks of {size}": size not in BLOCK_SIZES,
        f"the base's blocks of {size} do not divide {codec.width} inputs": codec.width % size != 0,
        f"its codes have other values than those of {floats}": not np.array_equal(
            codec.values, own
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _codec_of(source: QuantizedWeight) -> FourBitCodec | None:
    codec = source.codec.codec if isinstance(source.codec, Turned) else source.codec
    return codec if isinstance(codec, FourBitCodec) else None
