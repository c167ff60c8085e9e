"""The ranges of integers and scales: of each width, and of each dtype of scales.

Everything is symmetric, with zero point 0. Int4 uses both ends; int8 leaves −128 out, because
TensorRT's symmetric quantization does. Scales are normal numbers: TensorRT refuses 0, and subnormal
numbers may be taken for 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.halves import BFLOAT16, FLOAT16, narrow, widen

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = [
    "INTEGER_RANGES",
    "SCALE_DTYPES",
    "IntegerRange",
    "ScaleDType",
    "as_float32",
    "integer_range",
    "max_abs_scales",
    "require_finite",
    "require_range",
    "scale_dtype_of",
]

_HEADROOM: Final = 0.87
"""q·s is at most 8/7 of max|w|, and a rounded scale at most 2⁻⁸ more; 0.87·(8/7)·(1 + 2⁻⁸) < 1."""


@dataclass(frozen=True)
class IntegerRange:
    """The integers of one width that are used."""

    lowest: int
    highest: int


INTEGER_RANGES: Final = {4: IntegerRange(-8, 7), 8: IntegerRange(-127, 127)}


@dataclass(frozen=True)
class ScaleDType:
    """A dtype that scales are stored in.

    Attributes:
        dtype: The NumPy dtype.
        code: The number that the compiled module knows it by.
        smallest: Its smallest normal number.
        limit: The largest magnitude of a weight that its scales are used for: whatever the integer,
            q·s is finite in this dtype, in which DequantizeLinear gives it.
    """

    dtype: np.dtype[Any]
    code: int
    smallest: float
    limit: float

    def round(self, scales: Float32Array) -> npt.NDArray[Any]:
        """Return `scales`, their magnitudes at least the smallest normal number, rounded."""
        raised = np.copysign(np.maximum(np.abs(scales), np.float32(self.smallest)), scales)
        return raised if self.dtype == np.float32 else narrow(raised, self.dtype)


SCALE_DTYPES: Final = {
    row.dtype: row
    for row in (
        ScaleDType(np.dtype(np.float32), 0, 2.0**-126, _HEADROOM * (2 - 2**-23) * 2.0**127),
        ScaleDType(FLOAT16, 1, 2.0**-14, _HEADROOM * 65504.0),
        ScaleDType(BFLOAT16, 2, 2.0**-126, _HEADROOM * (2 - 2**-7) * 2.0**127),
    )
}


def integer_range(bits: int) -> IntegerRange:
    """Return the integers of `bits` bits.

    Raises:
        ValueError: `bits` is neither 4 nor 8.
    """
    if bits not in INTEGER_RANGES:
        msg = f"integers of {bits} bits are not among {sorted(INTEGER_RANGES)}"
        raise ValueError(msg)
    return INTEGER_RANGES[bits]


def scale_dtype_of(dtype: npt.DTypeLike) -> ScaleDType:
    """Return the row of `dtype`.

    Raises:
        ValueError: Scales are not stored in it.
    """
    found = SCALE_DTYPES.get(np.dtype(dtype))
    if found is None:
        msg = f"scales in {np.dtype(dtype)} are not among {[str(each) for each in SCALE_DTYPES]}"
        raise ValueError(msg)
    return found


def require_finite(maximum: float) -> None:
    """Require that weights whose largest magnitude is `maximum` are numbers.

    Raises:
        ValueError: `maximum` is infinite or NaN.
    """
    if not np.isfinite(maximum):
        msg = "a value is infinite or not a number"
        raise ValueError(msg)


def require_range(maximum: float, dtype: ScaleDType) -> None:
    """Require that weights up to `maximum` can be quantized with scales of `dtype`.

    Raises:
        ValueError: `maximum` is not finite.
        OverflowError: It is past the limit.
    """
    require_finite(maximum)
    if maximum > dtype.limit:
        msg = f"scales in {dtype.dtype} reach to weights of {dtype.limit:.6g}, not {maximum:.6g}"
        raise OverflowError(msg)


def max_abs_scales(maximum: Float32Array, highest: int, dtype: ScaleDType) -> npt.NDArray[Any]:
    """Return max|w| / q_max rounded to `dtype`; 1 where the maximum is 0.

    Args:
        maximum: max|w| of each block, any shape.
        highest: q_max.
        dtype: Of the scales.
    """
    scales = np.where(maximum > 0, maximum / np.float32(highest), np.float32(1))
    return dtype.round(scales)


def as_float32(scales: npt.NDArray[Any]) -> Float32Array:
    """Return scales of any dtype as float32, exactly."""
    return scales if scales.dtype == np.float32 else widen(scales)
