"""The values of four-bit floats, as bitsandbytes stores them and ONNX Runtime multiplies by them.

    value = VALUES[code] · absmax      a scale, the largest magnitude, for each block

NF4: quantiles of a normal distribution (https://arxiv.org/abs/2305.14314, section 3). FP4: a sign,
two bits of exponent and one of mantissa, divided by the largest. Two codes share a byte, the first
in its high half: the order of ``com.microsoft.MatMulBnb4``, and not that of ONNX's int4.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["BNB4_TYPES", "FLOAT4_BLOCK", "FLOAT4_VALUES", "HALF_GAPS", "Float4Name", "float4_of"]

Float4Name = Literal["nf4", "fp4"]

FLOAT4_BLOCK: Final = 64
"""The number of inputs that share a scale, where nobody chose one: bitsandbytes' own."""

_NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_POSITIVE: Final = (
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0,
    0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
)  # fmt: skip

FLOAT4_VALUES: Final[dict[Float4Name, tuple[float, ...]]] = {
    "nf4": _NF4,
    "fp4": (*_FP4_POSITIVE, *(-each for each in _FP4_POSITIVE)),
}
"""The value of each code, from the smallest code on; all are float32."""

BNB4_TYPES: Final[dict[Float4Name, int]] = {"fp4": 0, "nf4": 1}
"""The attribute ``quant_type`` of ``MatMulBnb4``."""

HALF_GAPS: Final[dict[Float4Name, float]] = {"nf4": 0.152, "fp4": 0.167}
"""Half of the largest distance between neighbours, rounded up: how far rounding moves a value."""


def float4_of(scheme: str) -> Float4Name | None:
    """Return the four-bit floats that a scheme names; None for any other scheme.

    >>> float4_of("nf4"), float4_of("int4")
    ('nf4', None)
    """
    return next((each for each in FLOAT4_VALUES if each == scheme), None)
