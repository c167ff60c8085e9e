"""Adapters of a swappable engine as values of its inputs; the base as explicit zeros.

TensorRT has no inputs with a default, and no profile for tensors of rank 0 is asked for: where a
module is not adapted, A and B are zeros of the smallest rank that a profile covers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    Array = np.ndarray[Any, Any]

__all__ = ["LORA_A", "LORA_B", "padded"]

LORA_A: Final = ".lora_A.weight"
LORA_B: Final = ".lora_B.weight"
_RANK_AXES: Final = {LORA_A: 1, LORA_B: 0}  # A [in, r], B [r, out]


def padded(values: Mapping[str, Array], rank: int) -> dict[str, Array]:
    """Return an adapter's values with zeros added to factors of a rank below `rank`.

    What is added is exactly zero: x·[A 0]·[B; 0] = x·A·B.
    """
    return {name: _padded(name, each, rank) for name, each in values.items()}


def _padded(name: str, values: Array, rank: int) -> Array:
    axis = next((at for end, at in _RANK_AXES.items() if name.endswith(end)), None)
    if axis is None or values.shape[axis] >= rank:
        return values
    shape = list(values.shape)
    shape[axis] = rank
    whole = np.zeros(shape, values.dtype)
    whole[tuple(slice(0, size) for size in values.shape)] = values
    return whole
