"""A smaller adapter: each update cut to its strongest directions.

ΔW ≈ Σᵢ≤ₖ σᵢ uᵢ vᵢᵀ, the nearest of rank k; σ is shared equally by A and B, so that neither leaves
the range of a two-byte dtype, and the scale becomes 1. The loss is measured on what is stored, in
float64: ``‖ΔW - s'·B'A'‖ / ‖ΔW‖``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lora_export.commands.analyze.spectrum import factors64, spectrum_of
from lora_export.core.dtypes import cast
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.tensors import MemoryTensor

if TYPE_CHECKING:
    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.commands.analyze.spectrum import Spectrum
    from lora_export.core.tensors import Tensor

__all__ = ["Compressed", "Cut", "compress"]


@dataclass(frozen=True)
class Cut:
    """The limit of each update: a rank, or a share of its energy ``Σσ²``; one of them."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        """Check that exactly one is given, and that it can be kept to."""
        if (self.rank is None) == (self.energy is None):
            msg = "an adapter is cut either to a rank or to a share of its energy"
            raise UsageError(msg, hint="Give --compress 4, or --compress 99%.")
        if self.rank is not None and self.rank < 1:
            msg = f"an adapter cannot be cut to the rank {self.rank}"
            raise UsageError(msg, hint="Give a rank of at least 1.")
        if self.energy is not None and not 0 < self.energy <= 1:
            msg = f"{self.energy:g} is not a share of the energy"
            raise UsageError(msg, hint="Give a share above 0, at most 1 (100%).")

    def of(self, spectrum: Spectrum) -> int:
        """Return k, at least 1."""
        wanted = spectrum.rank_of_energy(self.energy) if self.energy is not None else self.rank
        return max(1, min(wanted or 1, len(spectrum.values)))


@dataclass(frozen=True)
class Compressed:
    """One compressed update: its ranks before and after, and the loss."""

    module: str
    rank_before: int
    rank: int
    relative_error: float


def compress(adapter: Adapter, cut: Cut) -> tuple[Adapter, tuple[Compressed, ...]]:
    """Return `adapter` with every update cut, and what that lost; whole parameters stay.

    Raises:
        UnsupportedError: It is DoRA, whose magnitudes were trained with the update as it is.
        AdapterError: A factor holds NaN or infinity.
    """
    updates, rows = [], []
    for update in adapter.low_rank:
        if update.magnitude is not None:
            msg = f"adapter {adapter.source!r} is DoRA: its update is scaled by its own length"
            raise UnsupportedError(msg, hint="Compress a plain LoRA; or merge this one as it is.")
        smaller, row = _cut_one(update, cut)
        updates.append(smaller)
        rows.append(row)
    return replace(adapter, low_rank=tuple(updates)), tuple(rows)


def _cut_one(update: LowRank, cut: Cut) -> tuple[LowRank, Compressed]:
    spectrum = spectrum_of(update)
    k = cut.of(spectrum)
    if k >= update.rank:
        return update, Compressed(update.module, update.rank, update.rank, 0.0)
    roots = np.sqrt(spectrum.values[:k])
    a = (spectrum.right[:, :k] * roots).T.reshape(k, *update.a.shape[1:])
    b = (spectrum.left[:, :k] * roots).reshape(update.b.shape[0], k, *update.b.shape[2:])
    smaller = replace(update, a=_stored(a, update.a), b=_stored(b, update.b), scale=1.0)
    error = _distance(update, smaller) / spectrum.norm if spectrum.norm else 0.0
    return smaller, Compressed(update.module, update.rank, k, error)


def _stored(values: np.ndarray, like: Tensor) -> MemoryTensor:
    """Return `values` in the dtype that the adapter keeps its factors in."""
    stored = cast(np.ascontiguousarray(values, np.float32), like.dtype, name=like.name)
    return MemoryTensor(like.name, like.dtype, stored)


def _distance(first: LowRank, second: LowRank) -> float:
    """Return ``‖s₁·B₁A₁ - s₂·B₂A₂‖``, from the small triangles of ``[B₁ B₂]`` and ``[A₁; -A₂]``."""
    (a1, b1), (a2, b2) = factors64(first), factors64(second)
    _, left = np.linalg.qr(np.hstack([b1 * first.scale, b2 * second.scale]))
    _, right = np.linalg.qr(np.vstack([a1, -a2]).T)
    return float(np.linalg.norm(left @ right.T))
