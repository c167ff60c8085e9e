"""Relation of an update to the weight it is added to (the paper's section 7.3, table 7).

With U ``[out, r]`` and V ``[in, r]`` the singular directions of ΔW,

    ‖Uᵀ W V‖           what W does in the directions of ΔW
    ‖ΔW‖ / ‖Uᵀ W V‖    the amplification factor

and beside them the same for W's own r strongest directions, and for random ones. W is read in
blocks of rows, several times for its own directions, which block power iteration finds: their
value is a lower bound, close where W's singular values fall off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.dtypes import to_float32
from lora_export.core.tensors import bytes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_export.commands.analyze.spectrum import Float64Array, Spectrum
    from lora_export.core.tensors import Tensor

__all__ = ["Amplification", "amplification_of"]

_BLOCK_BYTES: Final = 1 << 22
_ITERATIONS: Final = 4
_EXTRA: Final = 8


@dataclass(frozen=True)
class Amplification:
    """One row of the table.

    Attributes:
        rank: r, how many directions.
        weight_norm: ‖W‖.
        delta_norm: ‖ΔW‖.
        in_delta: ‖Uᵀ W V‖ in the directions of ΔW.
        in_weight: In W's own strongest directions, at least.
        in_random: In random ones, the root of the expected square: ``r ‖W‖ / √(out · in)``.
    """

    rank: int
    weight_norm: float
    delta_norm: float
    in_delta: float
    in_weight: float
    in_random: float

    @property
    def factor(self) -> float:
        """‖ΔW‖ / ‖Uᵀ W V‖; 0 where ΔW = 0, infinite where only W does nothing there."""
        if not self.delta_norm:
            return 0.0
        return self.delta_norm / self.in_delta if self.in_delta else math.inf


def amplification_of(
    spectrum: Spectrum, weight: Tensor, *, input_first: bool, seed: int = 0
) -> Amplification:
    """Compare an update with its weight.

    Args:
        spectrum: The update's decomposition.
        weight: W, ``[out, in]`` (with a kernel's axes behind), or ``[in, out]``.
        input_first: Whether it is ``[in, out]``: Conv1D, an embedding.
        seed: Seeds the power iteration.
    """
    rows, columns = (
        (spectrum.right, spectrum.left) if input_first else (spectrum.left, spectrum.right)
    )

    def blocks() -> Iterator[tuple[Float64Array, int]]:
        return _blocks(weight)

    inner = np.zeros((rows.shape[1], columns.shape[1]))
    square = 0.0
    for block, start in blocks():
        inner += rows[start : start + len(block)].T @ (block @ columns)
        square += float(np.vdot(block, block))
    rank = int(np.count_nonzero(spectrum.values > spectrum.values[:1] * 1e-12))
    norm = math.sqrt(square)
    out_width, in_width = spectrum.shape
    return Amplification(
        rank=rank,
        weight_norm=norm,
        delta_norm=spectrum.norm,
        in_delta=float(np.linalg.norm(inner[:rank, :rank])),
        in_weight=_strongest(blocks, len(rows), len(columns), rank, seed),
        in_random=rank * norm / math.sqrt(out_width * in_width),
    )


def _strongest(
    blocks: Callable[[], Iterator[tuple[Float64Array, int]]],
    rows: int,
    columns: int,
    rank: int,
    seed: int,
) -> float:
    """Return ``√(σ₁² + … + σᵣ²)`` of the matrix that `blocks` gives, from below."""
    width = min(rank + _EXTRA, rows, columns)
    basis = np.random.default_rng(seed).standard_normal((columns, width))
    largest = 0.0
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(basis)[0]
        image = np.empty((rows, width))
        back = np.zeros((columns, width))
        for block, start in blocks():
            part = block @ basis
            image[start : start + len(block)] = part
            back += block.T @ part
        largest = float(np.linalg.norm(np.linalg.svd(image, compute_uv=False)[:rank]))
        basis = back
    return largest


def _blocks(weight: Tensor) -> Iterator[tuple[Float64Array, int]]:
    """Yield blocks of rows in float64, as matrices, each with the index of its first row."""
    shape = weight.shape
    row_bytes = math.prod(shape[1:]) * weight.dtype.itemsize_bytes
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        raw = np.empty((count, *shape[1:]), weight.dtype.numpy)
        weight.read_into(bytes_of(raw), start * row_bytes)
        yield to_float32(raw).reshape(count, -1).astype(np.float64), start
