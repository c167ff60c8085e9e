"""BOFT: a weight rotated by a butterfly of block rotations, its outputs scaled (arXiv 2311.06243).

    W = diag(s) · W0 · (Bₘ … B₁)ᵀ          Bᵢ = Pᵢ diag(R₁, …, Rₖ) Pᵢᵀ
    R = (I − Q)(I + Q)⁻¹,  Q = (D − Dᵀ)/2  D a block of boft_R [m, k, b, b], s = boft_s [out]

The Pᵢ are permutations that pair blocks of growing distance; with one factor (m = 1) there is none.
PEFT trains one factor only where its CUDA extension is missing. Each row of W is a row of W0
rotated and scaled: rows are computed block by block in float32. As in PEFT 0.21,
``peft/tuners/boft/layer.py``.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Computed, Transform
from lora_export.adapters.delta import read_finite
from lora_export.adapters.methods.interface import Method, matrix_misfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from lora_export.adapters.methods.interface import AdaptedModule
    from lora_export.core.dtypes import Float32Array
    from lora_export.core.parameters import Parameter

__all__ = ["BOFT"]

_NAMES: Final = ("boft_R", "boft_s")
_AXES: Final = 4


def _read(module: AdaptedModule) -> Iterator[Computed]:
    blocks, scales = module.require(*_NAMES)
    shape = blocks.shape
    if len(shape) != _AXES or 0 in shape or shape[2] != shape[3]:
        raise module.shapes_error(*_NAMES)
    factors, count, size, _ = shape
    if len(scales.shape) != 2 or 1 not in scales.shape:  # noqa: PLR2004  ([out, 1] or [1, out])
        raise module.shapes_error(*_NAMES)
    if factors > 1 and (size % 2 or count % (1 << (factors - 1))):
        raise module.error(f"boft_R {list(shape)} has no butterfly of {factors} factors")
    for setting, own in (("boft_block_size", size), ("boft_block_num", count)):
        if module.config.get(setting) not in {None, 0, own}:
            raise module.error(f"boft_R is {list(shape)}, {setting} is {module.config[setting]}")
    inputs = count * size

    def transform(_: Parameter) -> Transform:
        rotations = _rotations(read_finite(blocks)).transpose(0, 1, 3, 2)  # (m, k, b, b), Rᵀ
        orders = [butterfly(inputs, count >> i, size // 2, factors - 1) for i in range(factors)]
        output_scales = read_finite(scales).reshape(-1)

        def apply(rows: Float32Array, start: int) -> Float32Array:
            turned = rows.reshape(len(rows), inputs)
            for order, blocks_of in zip(orders, rotations, strict=True):
                paired = np.empty_like(turned)
                paired[:, order] = turned  # w P
                parts = paired.reshape(len(rows), count, size).transpose(1, 0, 2)
                turned = np.matmul(parts, blocks_of).transpose(1, 0, 2).reshape(len(rows), inputs)
                turned = turned[:, order]  # w Pᵀ
            part = output_scales[start : start + len(rows)]
            return (turned * part[:, None]).reshape(rows.shape)

        return Transform(apply)

    yield Computed(
        f"{module.path}.weight",
        "BOFT",
        (blocks, scales),
        matrix_misfit(prod(scales.shape), inputs, conv1d=False),
        transform,
        outputs=prod(scales.shape),
        inputs=inputs,
    )


def _rotations(blocks: Float32Array) -> Float32Array:
    """Return ``(I − Q)(I + Q)⁻¹`` of each block (Cayley)."""
    data = blocks.astype(np.float64)
    skew = 0.5 * (data - data.swapaxes(-1, -2))
    identity = np.broadcast_to(np.eye(data.shape[-1]), data.shape)
    solved = np.linalg.solve((identity + skew).swapaxes(-1, -2), (identity - skew).swapaxes(-1, -2))
    return np.asarray(solved.swapaxes(-1, -2), np.float32)


def butterfly(size: int, blocks: int, half: int, factors: int) -> npt.NDArray[np.int64]:
    """Return the permutation before a factor: in each of `blocks` parts, even halves come first.

    Args:
        size: The number of inputs.
        blocks: The number of parts.
        half: Half a block, which is moved as a whole.
        factors: The number of factors but one; without further ones nothing is moved.
    """
    order = np.arange(size)
    if factors == 0:
        return order
    length = size // blocks
    pieces = np.arange(length).reshape(-1, half)
    within = np.concatenate([pieces[::2], pieces[1::2]]).reshape(-1)
    return np.concatenate([start + within for start in range(0, size, length)])


BOFT: Final = Method("BOFT", frozenset(_NAMES), _read)
