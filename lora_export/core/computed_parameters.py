"""Parameters that transformers computes when it loads a model, instead of saving them.

    sinusoidal_halves    Marian's positions: sines in the first half of a row, cosines in the second

A kind is recorded when a model is traced, where the values of its function are those that
transformers itself computes, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

__all__ = ["COMPUTED"]


def _sinusoidal_halves(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return ``[positions, width]``: sin and cos of ``p / 10000^(2 (j // 2) / width)``.

    The angles of even columns j become the sines of the first half of a row, those of odd columns
    the cosines of the second (transformers' ``MarianSinusoidalPositionalEmbedding``).
    """
    positions, width = shape
    columns = np.arange(width)
    angles = np.arange(positions)[:, None] / np.power(10000, 2 * (columns // 2) / width)[None]
    parts = [np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])]
    return np.concatenate(parts, axis=1).astype(np.float32)


COMPUTED: Final[Mapping[str, Callable[[tuple[int, ...]], npt.NDArray[np.float32]]]] = {
    "sinusoidal_halves": _sinusoidal_halves,
}
"""The values of a parameter by its shape, for each kind."""
