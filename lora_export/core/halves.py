"""Two-byte floating-point numbers, float16 and bfloat16, to float32 and back, and what is measured.

Two ways with one result, bit for bit: ``_halves.c``, where the compiled module is there
(``core/compiled.py``); else NumPy, with integer arithmetic, because NumPy's own conversion of
float16 takes the numbers one by one. Formats: IEEE 754 binary16 (1 sign bit, 5 of exponent with
bias 15, 10 of fraction) and binary32 (1, 8 with bias 127, 23); bfloat16 is the upper half of a
binary32.

    widen    a half's magnitude, moved 13 places to the left, is a float32 that is 2¹¹² too small
             (the biases differ by 112); the product is exact, subnormal numbers included
    narrow   adding and taking away 1.5·2¹³ times the number's own power of two rounds it to the 11
             bits of a half, nearest, ties to even; with powers below 2⁻¹⁴ raised to it, to the
             step of subnormal halves. Times 2⁻¹¹², the result's bits 13 to 27 are the half's

Infinity and NaN take NumPy's way. Arrays are worked off in pieces that fit the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from lora_export.core.compiled import kernels as native

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BFLOAT16", "FLOAT16", "all_finite", "measure", "narrow", "widen"]

FLOAT16: Final = np.dtype(np.float16)
BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

_PIECE: Final = 1 << 16
_MAGNITUDE: Final = np.uint16(0x7FFF)
_SIGN: Final = np.uint16(0x8000)
_INFINITY: Final = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}
_MOVED: Final = 13
_UP: Final = np.float32(2.0**112)
_DOWN: Final = np.float32(2.0**-112)
_SIGN_AND_MAGNITUDE: Final = np.int32(-0x70000001)  # 0x8FFFFFFF
_EXPONENT: Final = np.uint32(0x7F800000)
_LARGEST_POWER: Final = (127 + 15) << 23
_SMALLEST_POWER: Final = np.uint32((127 - 14) << 23)
_ROUNDING: Final = np.uint32((13 << 23) + 0x400000)  # times 2¹³, times 1.5


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no number of a float16, bfloat16 or float32 array is infinite or NaN."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype not in _INFINITY:
        if native is not None and flat.dtype == np.float32:
            return bool(native.finite_f32(flat))
        return bool(np.isfinite(flat).all())
    bits = flat.view(np.uint16)
    if native is not None:
        return bool((native.finite_f16 if flat.dtype == FLOAT16 else native.finite_bf16)(bits))
    limit = _INFINITY[flat.dtype]
    return all(
        int((bits[start : start + _PIECE] & _MAGNITUDE).max()) < limit
        for start in range(0, bits.size, _PIECE)
    )


def widen(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return float16 or bfloat16 numbers as float32, exactly."""
    source = np.ascontiguousarray(values).reshape(-1)
    if source.dtype == BFLOAT16:  # a shift, not a conversion
        bits = source.view(np.uint16).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32).reshape(values.shape)
    result = np.empty(source.size, np.float32)
    if native is not None:
        native.widen_f16(source, result)
    else:
        for start in range(0, source.size, _PIECE):
            _widen_piece(source[start : start + _PIECE], result[start : start + _PIECE])
    return result.reshape(values.shape)


def _widen_piece(source: npt.NDArray[np.float16], target: npt.NDArray[np.float32]) -> None:
    if not all_finite(source):
        target[:] = source
        return
    wide = target.view(np.int32)
    np.left_shift(source.view(np.int16), _MOVED, out=wide, dtype=np.int32)
    wide &= _SIGN_AND_MAGNITUDE  # the sign was copied into the bits between
    target *= _UP


def narrow(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the nearest number of `dtype` to each float32, ties to even; infinity past the last.

    Args:
        values: Any shape.
        dtype: `FLOAT16` or `BFLOAT16`.
    """
    source = np.ascontiguousarray(values).reshape(-1)
    if native is None and dtype == BFLOAT16:
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(BFLOAT16)
    result = np.empty(source.size, np.uint16)
    if native is not None:
        (native.narrow_f16 if dtype == FLOAT16 else native.narrow_bf16)(source, result)
    else:
        for start in range(0, source.size, _PIECE):
            _narrow_piece(source[start : start + _PIECE], result[start : start + _PIECE])
    return result.view(dtype).reshape(values.shape)


def _narrow_piece(source: npt.NDArray[np.float32], target: npt.NDArray[np.uint16]) -> None:
    power = source.view(np.uint32) & _EXPONENT
    if int(power.max()) > _LARGEST_POWER:
        with np.errstate(over="ignore", invalid="ignore"):
            target.view(np.float16)[:] = source
        return
    np.maximum(power, _SMALLEST_POWER, out=power)
    power += _ROUNDING
    rounded = source + power.view(np.float32)
    rounded -= power.view(np.float32)
    rounded *= _DOWN
    bits = rounded.view(np.uint32)
    bits >>= _MOVED
    bits &= _MAGNITUDE
    np.right_shift(source.view(np.uint32), 16, out=power)
    power &= _SIGN
    bits |= power
    target[:] = bits


def measure(
    before: npt.NDArray[np.float32], merged: npt.NDArray[np.float32], stored: npt.NDArray[Any]
) -> tuple[float, float, int]:
    """Return ‖stored - merged‖², ‖merged - before‖², and how many of `stored` equal `before`.

    Args:
        before: Any shape.
        merged: The same shape.
        stored: The same shape, in float16, bfloat16 or a wider dtype.
    """
    flat = [np.ascontiguousarray(each).reshape(-1) for each in (before, merged, stored)]
    if native is not None and stored.dtype in _INFINITY:
        kind = native.measure_f16 if stored.dtype == FLOAT16 else native.measure_bf16
        error, delta, unmoved = kind(flat[0], flat[1], flat[2].view(np.uint16))
        return float(error), float(delta), int(unmoved)
    errors = deltas = 0.0
    unmoved = 0
    for start in range(0, flat[0].size, _PIECE):
        old, exact, kept = (each[start : start + _PIECE] for each in flat)
        value = widen(kept) if kept.dtype in _INFINITY else kept.astype(np.float32)
        unmoved += int(np.count_nonzero(value == old))
        error, delta = value - exact, exact - old
        errors += float(error @ error)
        deltas += float(delta @ delta)
    return errors, deltas, unmoved
