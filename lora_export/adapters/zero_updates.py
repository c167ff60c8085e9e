"""Updates that are zero, found in the adapter's own factors without reading a base.

``s·B A`` is zero where s is, where A or B is (PEFT initialises B with zeros, so an adapter that was
saved before training looks like this), or where the ranks cancel each other, as those of two
adapters do that ``--combine`` takes with opposite weights. The last is found by multiplying a
few random vectors: for x with independent standard normal entries, E‖B A x‖² = ‖B A‖².

With DoRA's magnitude the merged weight is ``m·W0/‖W0‖`` even for B A = 0, and what that changes
depends on the base (``weights/effect.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.adapters.canonical import Added, LowRank
from lora_export.core.dtypes import Float32Array, to_float32
from lora_export.core.listing import first_names
from lora_export.core.tensors import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_export.adapters.canonical import Item
    from lora_export.core.tensors import Tensor

__all__ = ["describe_zero", "is_zero", "trained_items", "zero_parameters"]

_CANCELLED: Final = 1e-6
"""‖B A‖ / (‖B‖ ‖A‖) up to which the ranks count as cancelled: float32 rounds by 1e-7."""

_VECTORS: Final = 4


def trained_items(items: Iterable[Item | None]) -> tuple[LowRank | Added, ...]:
    """Return the items that are added to the base: low-rank updates, and the biases on their B."""
    return tuple(item for item in items if isinstance(item, LowRank | Added))


def zero_parameters(items: Iterable[LowRank | Added]) -> tuple[str, ...]:
    """Return the parameters to which the items certainly add zero, in their order."""
    return tuple(item.parameter for item in items if is_zero(item))


def is_zero(item: LowRank | Added) -> bool:
    """Return whether an update is zero for every base.

    False where the base decides, and for factors that hold NaN or infinity.
    """
    if item.scale == 0 and not (isinstance(item, LowRank) and item.magnitude is not None):
        return True
    if isinstance(item, Added):
        return not _values(item.tensor).any()
    if item.magnitude is not None:
        return False
    a, b = _values(item.a), _values(item.b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    if not b.any():
        return True
    return not a.any() or (item.experts == 1 and _cancels(b, a))


def describe_zero(zero: Sequence[str], count: int, source: str) -> str | None:
    """Return a sentence on the updates of an adapter that are zero; None where none is.

    Args:
        zero: The parameters whose update is zero; see `zero_parameters`.
        count: The number of all updates; see `trained_items`.
        source: What the user calls the adapter.
    """
    if not zero:
        return None
    if len(zero) == count:
        return (
            f"every update of adapter {source!r} is zero ({count} in all): it was not "
            "trained, or the file is damaged"
        )
    return (
        f"{len(zero)} of {count} updates of adapter {source!r} are zero "
        f"({first_names(zero)}): they were not trained, or the file is damaged"
    )


def _values(tensor: Tensor) -> Float32Array:
    return to_float32(read_all(tensor))


def _cancels(b: Float32Array, a: Float32Array) -> bool:
    """Return whether ``b @ a`` is zero up to the rounding of its terms.

    No row of the product is longer than the whole, so that one which is long enough decides. Where
    the row of the longest row of `b` is not, the whole is estimated with random vectors.
    """
    left = b.reshape(len(b), -1).astype(np.float64)  # (out, r)
    right = a.reshape(len(a), -1).astype(np.float64)  # (r, in · kernel)
    lengths = np.einsum("or,or->o", left, left)  # squared
    limit = _CANCELLED * np.sqrt(lengths.sum()) * np.linalg.norm(right)
    if np.linalg.norm(left[lengths.argmax()] @ right) > limit:
        return False
    vectors = np.random.default_rng(0).standard_normal((right.shape[1], _VECTORS))
    product = np.linalg.norm(left @ (right @ vectors)) / np.sqrt(_VECTORS)
    return bool(product <= limit)
