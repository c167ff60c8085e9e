"""The product of two thin factors, with the same bits however many threads BLAS has.

OpenBLAS parts a large product among its threads, and what a part's edge rounds depends on where it
is: one thread and two give float32 results that differ in the last bit. A product of at most
``2¹⁸`` multiplications is never parted, so a large one is done in tiles of that size. The time is
about 1.3 times that of one product at rank 8, and 2 times at rank 64; reading and writing the
weight takes more.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from lora_export.core.dtypes import Float32Array

__all__ = ["thin_product"]

_UNPARTED: Final = 1 << 18
"""Multiplications of one product: OpenBLAS's ``SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD``."""
_STEP: Final = 16
"""Sides of tiles are multiples of it, as those of the kernels are."""


def thin_product(
    left: Float32Array, right: Float32Array, out: Float32Array | None = None
) -> Float32Array:
    """Return ``left @ right``, ``[n, r] @ [r, c]``, tile by tile; into `out` where it is given."""
    (rows, rank), columns = left.shape, right.shape[1]
    product = np.empty((rows, columns), np.float32) if out is None else out
    side = max(_STEP, isqrt(_UNPARTED // max(rank, 1)) // _STEP * _STEP)
    for top in range(0, rows, side):
        for first in range(0, columns, side):
            tile = slice(top, top + side), slice(first, first + side)
            np.matmul(left[tile[0]], right[:, tile[1]], out=product[tile])
    return product
