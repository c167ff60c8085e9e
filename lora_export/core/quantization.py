"""Quantized parameters as values: how the integers and scales of one parameter are stored.

    value = (integer − zero point) · scale      zero point 0, but for integers of the base

The integers of a parameter ``P`` are the initializer ``P.quantized``, its scales ``P.scale``, its
zero points ``P.zero_point``, which only weights have whose integers the base stores so. Four
bits are packed two to a byte as ONNX packs them, in row-major order with the first in the low
half; safetensors has no such dtype, so that a file holds them as ``U8 [n / 2]``.

Four-bit floats (`lora_export.core.four_bit_floats`) keep their codes where others keep integers:

    value = VALUES[code] · scale

A graph stores them as a checkpoint does, outputs first and blocks along the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from lora_export.core.four_bit_floats import Float4Name

__all__ = [
    "ALL_INPUTS",
    "BLOCKS_OPSET",
    "BLOCK_SIZES",
    "INT8_BLOCK",
    "INTEGERS",
    "METHOD_NAMES",
    "SCALES",
    "SCHEMES",
    "ZERO_POINTS",
    "BlockSize",
    "MethodName",
    "Quantized",
    "SchemeName",
    "integers_name",
    "scales_name",
    "stored_name",
    "zero_points_name",
]

SchemeName = Literal["int4", "int8", "nf4", "fp4"]
MethodName = Literal["nearest", "search", "signed", "gptq"]
"""How scales and integers are found; `lora_export.weights.quantization.methods` has a row each."""
BlockSize = Literal[0, 16, 32, 64, 128, 256]
SCHEMES: Final = get_args(SchemeName)
METHOD_NAMES: Final[tuple[MethodName, ...]] = get_args(MethodName)
BLOCK_SIZES: Final[tuple[BlockSize, ...]] = (16, 32, 64, 128, 256)
"""The block sizes that ONNX Runtime's and TensorRT's kernels take."""
BLOCKS_OPSET: Final = 21
"""The first opset whose ``DequantizeLinear`` has blocks, and int4."""
INT8_BLOCK: Final = 256
"""The largest block of int8 where a graph may have blocks: the fastest in ONNX Runtime (ADR 29)."""
ALL_INPUTS: Final = "all"
"""The word for one scale per output in place of blocks; int8 alone has that."""
INTEGERS: Final = ".quantized"
SCALES: Final = ".scale"
ZERO_POINTS: Final = ".zero_point"
PER_CHANNEL: Final = 0
_HALF_BYTE: Final = 4


@dataclass(frozen=True)
class Quantized:
    """The quantization of one parameter; axes are those of the graph's layout.

    Attributes:
        bits: 4 or 8.
        block_size: How many values along `axis` share a scale; 0 for one scale per slice.
        axis: The axis that blocks run along; without blocks, the axis that has the scales.
        zero_points: Whether each scale has a zero point, of as many bits as the integers.
        floats: What codes of 4 bits stand for where they are floats; None for integers.
    """

    bits: Literal[4, 8]
    block_size: BlockSize
    axis: Literal[0, 1]
    zero_points: bool = False
    floats: Float4Name | None = None

    @property
    def scheme(self) -> SchemeName:
        """The name of the scheme that users type."""
        if self.floats is not None:
            return self.floats
        return "int4" if self.bits == _HALF_BYTE else "int8"

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of a parameter of `shape`, in the graph's layout."""
        if self.block_size == PER_CHANNEL:
            return (shape[self.axis],)
        blocks = shape[self.axis] // self.block_size
        return (*shape[: self.axis], blocks, *shape[self.axis + 1 :])

    def zero_points_bytes(self, shape: tuple[int, ...]) -> int:
        """Return how many bytes the zero points of a parameter of `shape` take."""
        return prod(self.scales_shape(shape)) * self.bits // 8 if self.zero_points else 0

    def integers_bytes(self, shape: tuple[int, ...]) -> int:
        """Return how many bytes the integers of a parameter of `shape` take."""
        return prod(shape) * self.bits // 8


def integers_name(parameter: str, reader: int = 1) -> str:
    """Return the initializer of a parameter's integers that its reader of this number reads."""
    return _numbered(parameter + INTEGERS, reader)


def scales_name(parameter: str, reader: int = 1) -> str:
    """Return the initializer of a parameter's scales that its reader of this number reads."""
    return _numbered(parameter + SCALES, reader)


def zero_points_name(parameter: str, reader: int = 1) -> str:
    """Return the initializer of a parameter's zero points that its reader of this number reads."""
    return _numbered(parameter + ZERO_POINTS, reader)


def _numbered(name: str, reader: int) -> str:
    return name if reader == 1 else f"{name}.{reader}"


def stored_name(initializer: str) -> str:
    """Return the tensor that an initializer's value is stored as: without its reader's number."""
    name, _, number = initializer.rpartition(".")
    is_copy = number.isdecimal() and name.endswith((INTEGERS, SCALES, ZERO_POINTS))
    return name if is_copy else initializer
