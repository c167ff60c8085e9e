"""The numbers that torch draws on a CPU from a seed, for adapters that store the seed alone.

torch's generator is MT19937, seeded with 32 bits, as NumPy's ``RandomState`` is. From each number x
of 32 bits it makes one of float32, ``(x mod 2²⁴) · 2⁻²⁴ · (to − from) + from``
(``aten/src/ATen/core/TransformationHelper.h``); ``randperm`` exchanges the i-th entry with the one
that is ``x mod (n − i)`` behind it (``aten/src/ATen/native/TensorFactories.cpp``).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = ["TorchRandom", "first_of_permutation"]

_SEED_BITS: Final = 0xFFFFFFFF
_FRACTION_BITS: Final = (1 << 24) - 1
_LONG: Final = 0xFFFFFFFF // 20
"""From this length on, a permutation takes 64 bits for each entry."""


class TorchRandom:
    """A generator of torch's on a CPU, ``torch.Generator().manual_seed(seed)``.

    Args:
        seed: The seed; negative ones are those of 64 bits that they wrap to.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed & _SEED_BITS)

    def integers(self, count: int) -> npt.NDArray[np.uint32]:
        """Return the next numbers of 32 bits."""
        return self._bits.randint(0, 1 << 32, count, np.uint32)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Float32Array:
        """Return what ``torch.empty(shape).uniform_(low, high)`` draws."""
        fractions = (self.integers(prod(shape)) & np.uint32(_FRACTION_BITS)).astype(np.float32)
        fractions *= np.float32(2.0**-24)
        fractions *= np.float32(np.float32(high) - np.float32(low))
        fractions += np.float32(low)
        return fractions.reshape(shape)


def first_of_permutation(seed: int, length: int, count: int) -> npt.NDArray[np.int64]:
    """Return the first `count` entries of ``torch.randperm(length)`` under a seed.

    Args:
        seed: The generator's seed.
        length: The length of the permutation.
        count: How many entries are wanted, at most `length`.
    """
    steps = min(count, length - 1)
    random = TorchRandom(seed)
    if length < _LONG:
        draws = random.integers(steps).astype(np.uint64)
    else:
        halves = random.integers(2 * steps).astype(np.uint64).reshape(-1, 2)
        draws = (halves[:, 0] << np.uint64(32)) | halves[:, 1]
    moved: dict[int, int] = {}  # the entries that are not in their places
    found = np.empty(count, np.int64)
    for index in range(count):
        other = index + int(draws[index]) % (length - index) if index < steps else index
        found[index] = moved.get(other, other)
        moved[other] = moved.get(index, index)
    return found
