"""Adapters of a swappable engine as values of its inputs; the base as explicit zeros.

TensorRT has no inputs with a default, and no profile for tensors of rank 0 is asked for: where a
module is not adapted, A and B are zeros of the smallest rank that a profile covers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_export.ondevice.trt.build_settings import Profile

    Array = np.ndarray[Any, Any]

__all__ = ["LORA_A", "LORA_B", "padded", "padded_shape", "smallest_rank"]

LORA_A: Final = ".lora_A.weight"
LORA_B: Final = ".lora_B.weight"
_RANK_AXES: Final = {LORA_A: 1, LORA_B: 0}  # A [in, r], B [r, out]


def padded(values: Mapping[str, Array], rank: int) -> dict[str, Array]:
    """Return an adapter's values with zeros added to factors of a rank below `rank`.

    What is added is exactly zero: x·[A 0]·[B; 0] = x·A·B.
    """
    return {name: _padded(name, each, rank) for name, each in values.items()}


def _padded(name: str, values: Array, rank: int) -> Array:
    shape = padded_shape(name, values.shape, rank)
    if shape == values.shape:
        return values
    whole = np.zeros(shape, values.dtype)
    whole[tuple(slice(0, size) for size in values.shape)] = values
    return whole


def padded_shape(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the shape that `padded` gives a value.

    >>> padded_shape("q.lora_A.weight", (32, 2), 4), padded_shape("head.weight", (3, 32), 4)
    ((32, 4), (3, 32))
    """
    axis = next((at for end, at in _RANK_AXES.items() if name.endswith(end)), None)
    if axis is None:
        return shape
    return (*shape[:axis], max(shape[axis], rank), *shape[axis + 1 :])


def smallest_rank(profiles: Iterable[Profile]) -> int:
    """Return the smallest rank of A, ``[in, r]``, in any profile; 0 where there is none."""
    at = _RANK_AXES[LORA_A]
    return min(
        (each.min[at] for p in profiles for name, each in p.items() if name.endswith(LORA_A)),
        default=0,
    )
