"""float16 to float32 and back by integer arithmetic, faster than NumPy's conversion.

NumPy converts halves one by one where it was not built for the processor's own instruction. Whole
arrays of bits go through vector instructions everywhere. Format: IEEE 754, binary16 (1 sign bit, 5
of exponent with bias 15, 10 of fraction) and binary32 (1, 8 with bias 127, 23).

    widen    the magnitude's bits, moved 13 places to the left, are a float32 that is 2¹¹² too
             small (the biases differ by 112); the product is exact, subnormal numbers included
    narrow   adding and taking away 1.5·2¹³ times the number's own power of two rounds it to the 11
             bits of a half, nearest, ties to even; with powers below 2⁻¹⁴ raised to it, to the
             step of subnormal halves. Times 2⁻¹¹², the result's bits 13 to 27 are the half's

Infinity and NaN take NumPy's way. Arrays are worked off in pieces that fit the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["all_finite", "narrow", "widen"]

_PIECE: Final = 1 << 16
_MAGNITUDE: Final = np.uint16(0x7FFF)
_SIGN: Final = np.uint16(0x8000)
_INFINITY: Final = 0x7C00
_MOVED: Final = 13
_UP: Final = np.float32(2.0**112)
_DOWN: Final = np.float32(2.0**-112)
_SIGN_AND_MAGNITUDE: Final = np.int32(-0x70000001)  # 0x8FFFFFFF
_EXPONENT: Final = np.uint32(0x7F800000)
_LARGEST_POWER: Final = (127 + 15) << 23
_SMALLEST_POWER: Final = np.uint32((127 - 14) << 23)
_ROUNDING: Final = np.uint32((13 << 23) + 0x400000)  # times 2¹³, times 1.5


def all_finite(values: npt.NDArray[np.float16]) -> bool:
    """Whether no half of a contiguous array is infinite or NaN."""
    if values.size == 0:
        return True
    bits = values.reshape(-1).view(np.uint16)
    return all(
        int((bits[start : start + _PIECE] & _MAGNITUDE).max()) < _INFINITY
        for start in range(0, bits.size, _PIECE)
    )


def widen(values: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return halves as float32, exactly."""
    source = np.ascontiguousarray(values).reshape(-1)
    result = np.empty(source.size, np.float32)
    for start in range(0, source.size, _PIECE):
        piece = source[start : start + _PIECE]
        target = result[start : start + _PIECE]
        if not all_finite(piece):
            target[:] = piece
            continue
        wide = target.view(np.int32)
        np.left_shift(piece.view(np.int16), _MOVED, out=wide, dtype=np.int32)
        wide &= _SIGN_AND_MAGNITUDE  # the sign was copied into the bits between
        target *= _UP
    return result.reshape(values.shape)


def narrow(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return the nearest half of each float32, ties to even; infinity where it is too large."""
    source = np.ascontiguousarray(values).reshape(-1)
    result = np.empty(source.size, np.float16)
    for start in range(0, source.size, _PIECE):
        piece = source[start : start + _PIECE]
        target = result[start : start + _PIECE]
        power = piece.view(np.uint32) & _EXPONENT
        if int(power.max()) > _LARGEST_POWER:
            with np.errstate(over="ignore"):
                target[:] = piece
            continue
        np.maximum(power, _SMALLEST_POWER, out=power)
        power += _ROUNDING
        rounded = piece + power.view(np.float32)
        rounded -= power.view(np.float32)
        rounded *= _DOWN
        bits = rounded.view(np.uint32)
        bits >>= _MOVED
        bits &= _MAGNITUDE
        np.right_shift(piece.view(np.uint32), 16, out=power)
        power &= _SIGN
        bits |= power
        target.view(np.uint16)[:] = bits
    return result.reshape(values.shape)
