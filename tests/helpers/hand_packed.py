"""Weights packed by hand in the layouts of GPTQ, AWQ, FP8 blocks and MXFP4, one code at a time.

Each function returns the tensors of a module and the values that they stand for, computed in
float64 from the formula and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["pack_awq", "pack_fp8_blocks", "pack_gptq", "pack_mxfp4"]

_WORD: Final = 32
_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def pack_gptq(
    outputs: int,
    inputs: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    act_order: bool = False,
    version: int = 1,
    symmetric: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Array], Array]:
    """Return ``qweight``, ``qzeros``, ``scales``, ``g_idx``, and the values ``[out, in]``."""
    rng = np.random.default_rng(seed)
    groups = -(-inputs // group_size)
    q = rng.integers(0, 1 << bits, (inputs, outputs))
    z = rng.integers(1 if version == 1 else 0, 1 << bits, (groups, outputs))
    z = np.full_like(z, 1 << (bits - 1)) if symmetric else z
    s = rng.uniform(0.001, 0.1, (groups, outputs)).astype(np.float16)
    g = np.arange(inputs, dtype=np.int32) // group_size
    if act_order:
        g = rng.permutation(g)
    zeros = z - 1 if version == 1 else z
    tensors = {
        "qweight": np.stack([_stream(column, bits) for column in q.T], 1),
        "qzeros": np.stack([_stream(row, bits) for row in zeros]),
        "scales": s,
        "g_idx": g,
    }
    values = (q - z[g]) * s[g].astype(np.float64)
    return tensors, values.T.astype(np.float16)


def pack_awq(
    outputs: int, inputs: int, *, group_size: int = 32, seed: int = 0
) -> tuple[dict[str, Array], Array]:
    """Return ``qweight``, ``qzeros``, ``scales``, and the weight ``[outputs, inputs]``."""
    rng = np.random.default_rng(seed)
    groups = inputs // group_size
    q = rng.integers(0, 16, (inputs, outputs))
    z = rng.integers(0, 16, (groups, outputs))
    s = rng.uniform(0.001, 0.1, (groups, outputs)).astype(np.float16)
    tensors = {"qweight": _awq_words(q), "qzeros": _awq_words(z), "scales": s}
    g = np.arange(inputs) // group_size
    values = (q - z[g]) * s[g].astype(np.float64)
    return tensors, values.T.astype(np.float16)


def pack_fp8_blocks(
    outputs: int, inputs: int, *, size: int = 128, seed: int = 0
) -> tuple[dict[str, Array], Array]:
    """Return ``weight``, ``weight_scale_inv``, and the values ``[outputs, inputs]`` in bfloat16."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(0, 50, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    shape = (-(-outputs // size), -(-inputs // size))
    scales = rng.uniform(1e-4, 1e-3, shape).astype(np.float32)
    values = np.zeros((outputs, inputs), np.float32)
    for row in range(outputs):
        for column in range(inputs):
            scale = scales[row // size, column // size]
            values[row, column] = np.float32(codes[row, column]) * scale
    tensors = {"weight": codes, "weight_scale_inv": scales}
    return tensors, values.astype(ml_dtypes.bfloat16)


def pack_mxfp4(
    experts: int, outputs: int, inputs: int, *, seed: int = 0
) -> tuple[dict[str, Array], Array]:
    """Return ``_blocks``, ``_scales``, and the values ``[experts, inputs, outputs]``."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (experts, outputs, inputs))
    scales = rng.integers(110, 135, (experts, outputs, inputs // 32)).astype(np.uint8)
    pairs = codes.reshape(experts, outputs, inputs // 32, 16, 2)
    blocks = (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)
    table = np.array([*_E2M1, *(-each for each in _E2M1)])
    exponents = np.repeat(scales.astype(int), 32, 2) - 127
    values = table[codes] * np.exp2(exponents.astype(np.float64))
    tensors = {"_blocks": blocks, "_scales": scales}
    return tensors, values.transpose(0, 2, 1).astype(ml_dtypes.bfloat16)


def _stream(codes: Array, bits: int) -> Array:
    """Return codes as one number, the first in the lowest bits, cut into words of 32 bits."""
    number = sum(int(code) << (bits * at) for at, code in enumerate(codes))
    count = -(-len(codes) * bits // _WORD)
    words = [(number >> (_WORD * at)) & 0xFFFFFFFF for at in range(count)]
    return np.array(words, np.uint32).view(np.int32)


def _awq_words(codes: Array) -> Array:
    """Return words of eight neighbours in a row, in AWQ's order."""
    rows, columns = codes.shape
    words = np.zeros((rows, columns // 8), np.uint32)
    for row in range(rows):
        for word in range(columns // 8):
            for place, column in enumerate(_AWQ_ORDER):
                words[row, word] |= np.uint32(int(codes[row, 8 * word + column]) << (4 * place))
    return words.view(np.int32)
