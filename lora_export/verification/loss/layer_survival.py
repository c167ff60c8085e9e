"""Survival of an adapter in one quantized weight, measured on the directions that it changes.

With W0 the base's weight, W the merged one, Q(·) a value after quantization, and the factors of the
update, ``L R`` of rank r (`lora_export.adapters.delta`):

    ΔW     = W − W0                              the update
    D      = Q(W) − Q(W0)                        what was stored of it
    L = U' S,  Rᵀ = V' T                         QR of the thin factors
    S Tᵀ   = X Σ Yᵀ             (r, r)           so that L R = (U' X) Σ (V' Y)ᵀ
    U, V   = U' X, V' Y                          where Σ > 0: the singular subspace of L R
    M, P   = Uᵀ ΔW V, Uᵀ D V                     the update there, and what was stored of it

    gain   = ⟨P, M⟩ / ‖M‖²,   cosine = ⟨P, M⟩ / (‖P‖ ‖M‖)

No matrix of the weight's size is decomposed. Of an error that is spread over all n · m directions
``r² / (n · m)`` of the energy lie in this subspace: that is why an adapter can survive an error
much larger than itself. Two ratios of weights come with it; they explain, and are no verdict:

    relative error    ‖Q(W) − W‖ / ‖W‖
    error over delta  ‖Q(W) − W‖ / ‖ΔW‖

With DoRA, ΔW is more than ``L R``; what is measured is its part in the subspace of the factors.

A weight is given in blocks of rows, in any order. Sums are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lora_export.adapters.delta import Factors

__all__ = ["LayerMeter", "LayerSurvival", "Pair", "WeightError"]

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

_ZERO: Final = 1e-7
"""A singular value up to this share of the largest is the rounding of float32."""


@dataclass(frozen=True)
class Pair:
    """Rows of one weight before and after quantization, ``[n, columns]`` each."""

    exact: Array
    quantized: Array


@dataclass(frozen=True)
class WeightError:
    """The error of a quantized weight.

    Attributes:
        error_squared: ‖Q(W) − W‖².
        weight_squared: ‖W‖².
        delta_squared: ‖ΔW‖²; None for a weight without an update.
    """

    error_squared: float
    weight_squared: float
    delta_squared: float | None = None

    @property
    def relative_error(self) -> float | None:
        """‖Q(W) − W‖ / ‖W‖; None where it is not finite."""
        return _root_of_ratio(self.error_squared, self.weight_squared)

    @property
    def error_over_delta(self) -> float | None:
        """‖Q(W) − W‖ / ‖ΔW‖; None without an update, or where it is not finite."""
        if self.delta_squared is None:
            return None
        return _root_of_ratio(self.error_squared, self.delta_squared)


@dataclass(frozen=True)
class LayerSurvival:
    """Survival of an update in one quantized weight.

    Attributes:
        error: The error of the weight.
        gain: ⟨P, M⟩ / ‖M‖²; None where the update is zero, or a number is not finite.
        cosine: ⟨P, M⟩ / (‖P‖ ‖M‖), 0 where nothing is left; None as for `gain`.
    """

    error: WeightError
    gain: float | None
    cosine: float | None


class LayerMeter:
    """Measures one weight from its rows.

    Args:
        left: L, ``[rows, r]``.
        right: R, ``[r, columns]``.
    """

    def __init__(self, left: Array, right: Array) -> None:
        self._u, self._v = _singular_subspace(left, right)
        self._update = np.zeros((self._u.shape[1], self._v.shape[1]))
        self._stored = np.zeros_like(self._update)
        self._error = self._weight = self._delta = 0.0

    @classmethod
    def of(cls, factors: Factors) -> LayerMeter:
        """Return the meter of an update as a merge has it."""
        return cls(factors.left, factors.right)

    def __call__(self, start: int, base: Pair, merged: Pair) -> None:
        """Take rows ``start:start + n`` of a weight, as matrices ``[n, columns]``.

        Args:
            start: The first of them.
            base: Those of W0 and of Q(W0).
            merged: Those of W and of Q(W).
        """
        u = self._u[start : start + len(merged.exact)]
        with np.errstate(invalid="ignore", over="ignore"):  # the result says that it is not finite
            exact, stored = (_wide(each) for each in (merged.exact, merged.quantized))
            error = stored - exact
            self._error += float(np.vdot(error, error))
            self._weight += float(np.vdot(exact, exact))
            exact -= base.exact
            stored -= base.quantized
            self._delta += float(np.vdot(exact, exact))
            self._update += u.T @ (exact @ self._v)
            self._stored += u.T @ (stored @ self._v)

    def result(self) -> LayerSurvival:
        """Return what was measured of the rows so far."""
        error = WeightError(self._error, self._weight, self._delta)
        kept = float(np.vdot(self._update, self._update))
        left = float(np.vdot(self._stored, self._stored))
        common = float(np.vdot(self._stored, self._update))
        if not all(map(math.isfinite, (kept, left, common))) or kept == 0.0:
            return LayerSurvival(error, None, None)
        cosine = common / math.sqrt(left * kept) if left > 0.0 else 0.0
        return LayerSurvival(error, common / kept, cosine)


def _singular_subspace(left: Array, right: Array) -> tuple[Float64Array, Float64Array]:
    """Return the left and right singular vectors of ``left @ right``, without those of zeros."""
    with np.errstate(invalid="ignore", over="ignore"):
        u, small = np.linalg.qr(_wide(left))  # (rows, k), (k, r)
        v, wide = np.linalg.qr(_wide(right).T)  # (columns, m), (m, r)
        core = small @ wide.T
    if not np.isfinite(core).all():
        return u[:, :0], v[:, :0]
    x, sigma, y = np.linalg.svd(core, full_matrices=False)
    rank = int((sigma > _ZERO * sigma.max(initial=0.0)).sum())
    return u @ x[:, :rank], v @ y[:rank].T


def _wide(rows: Array) -> Float64Array:
    return rows.astype(np.float64)


def _root_of_ratio(above: float, below: float) -> float | None:
    """Return ``√(above / below)``; zero over zero is 0, and None what is not finite."""
    if above == 0.0 and below == 0.0:
        return 0.0
    ratio = above / below if below > 0.0 else math.inf
    return math.sqrt(ratio) if math.isfinite(ratio) else None
