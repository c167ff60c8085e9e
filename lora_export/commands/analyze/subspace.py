"""Overlap of two subspaces (the paper's section 7.2, equation 4).

    φ(i, j) = ‖Uᵢᵀ Vⱼ‖² / min(i, j)        0: orthogonal, 1: the smaller lies in the larger

Uᵢ and Vⱼ are the first i and j directions of two adapters' matrices of one module: of A those in
the input (the right singular vectors), of B those in the output (the left ones).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from lora_export.commands.analyze.spectrum import factors64
from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from lora_export.adapters.canonical import LowRank
    from lora_export.commands.analyze.spectrum import Float64Array

__all__ = ["Matrix", "directions", "similarity"]

Matrix = Literal["A", "B"]


def directions(update: LowRank, matrix: Matrix) -> Float64Array:
    """Return the singular directions of A ``[in, r]`` or of B ``[out, r]``, the strongest first."""
    a, b = factors64(update)
    if matrix == "A":
        return np.asarray(np.linalg.svd(a, full_matrices=False)[2].T)
    return np.asarray(np.linalg.svd(b, full_matrices=False)[0])


def similarity(first: LowRank, second: LowRank, matrix: Matrix) -> Float64Array:
    """Return φ as ``[r₁, r₂]``; entry ``[i - 1, j - 1]`` compares the first i and j directions.

    Raises:
        AdapterError: The two updates have different widths.
    """
    u, v = directions(first, matrix), directions(second, matrix)
    if len(u) != len(v):
        msg = f"{first.module!r} is {len(u)} wide in one adapter and {len(v)} in the other"
        raise AdapterError(msg, hint="Compare adapters of one base.")
    overlaps = np.cumsum(np.cumsum((u.T @ v) ** 2, axis=0), axis=1)
    i, j = np.indices(overlaps.shape) + 1
    return np.asarray(overlaps / np.minimum(i, j))
