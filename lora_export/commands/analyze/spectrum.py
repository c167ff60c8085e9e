"""Singular values of an update ``ΔW = s·B A``, without forming it.

    Aᵀ = Q₁R₁,  B = Q₂R₂,  s·R₂R₁ᵀ = U'ΣV'ᵀ     →     ΔW = (Q₂U') Σ (Q₁V')ᵀ

O((out + in) r²) in float64. The weight is taken as ``[out, in]`` whatever its layout on disk; the
axes of a convolution's kernel are part of ``in``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lora_export.adapters.delta import read_finite

if TYPE_CHECKING:
    from lora_export.adapters.canonical import LowRank

__all__ = ["Float64Array", "Spectrum", "factors64", "spectrum_of"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of one module's update.

    Attributes:
        module: The module's path.
        values: σ, descending, ``[min(r, out, in)]``.
        left: The left singular vectors, ``[out, k]``, orthonormal: directions in the output.
        right: The right singular vectors, ``[in, k]``, orthonormal: directions in the input.
        rank: r, the adapter's own.
    """

    module: str
    values: Float64Array = field(repr=False)
    left: Float64Array = field(repr=False)
    right: Float64Array = field(repr=False)
    rank: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.left), len(self.right)

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return float(np.linalg.norm(self.values))

    @property
    def effective_rank(self) -> float:
        """``exp(-Σ pᵢ log pᵢ)`` with ``pᵢ = σᵢ / Σσ`` (Roy and Vetterli 2007); 0 where ΔW = 0.

        r where all directions weigh the same, near 1 where one of them is nearly all.
        """
        total = float(self.values.sum())
        if total == 0.0:
            return 0.0
        shares = self.values / total
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))

    @property
    def stable_rank(self) -> float:
        """``‖ΔW‖² / σ₁²``; 0 where ΔW = 0."""
        largest = float(self.values[0]) if self.values.size else 0.0
        return (self.norm / largest) ** 2 if largest else 0.0

    def rank_of_energy(self, share: float) -> int:
        """Return the smallest k with ``Σᵢ≤ₖ σᵢ² ≥ share · ‖ΔW‖²``."""
        energy = np.cumsum(self.values**2)
        if not energy.size or energy[-1] == 0.0:
            return 0
        reached = energy >= share * energy[-1] * (1 - 1e-12)
        return int(np.argmax(reached)) + 1


def factors64(update: LowRank) -> tuple[Float64Array, Float64Array]:
    """Return A ``[r, in]`` and B ``[out, r]`` in float64, without s.

    Raises:
        AdapterError: One holds NaN or infinity.
    """
    a = read_finite(update.a).astype(np.float64)
    b = read_finite(update.b).astype(np.float64)
    return a.reshape(len(a), -1), b.reshape(len(b), -1)


def spectrum_of(update: LowRank) -> Spectrum:
    """Return the decomposition of ``s·B A``; with DoRA, of the update before its rows are scaled.

    Raises:
        AdapterError: A factor holds NaN or infinity.
    """
    a, b = factors64(update)
    q1, r1 = np.linalg.qr(a.T)
    q2, r2 = np.linalg.qr(b)
    u, values, vh = np.linalg.svd(update.scale * (r2 @ r1.T), full_matrices=False)
    return Spectrum(update.module, values, q2 @ u, q1 @ vh.T, update.rank)
