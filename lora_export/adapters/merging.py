"""Several arrays into one: the arithmetic of TIES, DARE and pruning, on stacks ``[n, …]``.

    linear            Σᵢ wᵢ tᵢ                                      (task arithmetic, 2212.04089)
    magnitude_prune   Σᵢ wᵢ top(tᵢ)                                 top keeps the largest |values|
    ties              Σᵢ wᵢ top(tᵢ) [sign = γ] / max(1, Σᵢ [sign = γ])         (2306.01708)
    dare_linear       Σᵢ wᵢ mᵢ tᵢ / density                         mᵢ ~ Bernoulli   (2311.03099)
    dare_ties         ties on mᵢ tᵢ / density

γ is the majority's sign of each entry, elected before the weights are applied, + on a draw:
that of ``Σᵢ tᵢ`` (``total``) or of ``Σᵢ sign tᵢ`` (``frequency``). As PEFT 0.21 computes them, but
for one choice that PEFT leaves to ``torch.topk``: of equal magnitudes at the cut, ``top`` keeps
those that come first in row-major order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = ["MajoritySign", "Rule", "keep_largest", "low_rank_svd", "merge", "truncated_svd"]

MajoritySign = Literal["total", "frequency"]
_RANDOM: Final = frozenset({"dare_linear", "dare_ties"})
_ELECTED: Final = frozenset({"ties", "dare_ties"})


@dataclass(frozen=True)
class Rule:
    """A rule by which arrays are merged.

    Attributes:
        method: ``linear``, ``magnitude_prune``, ``ties``, ``dare_linear`` or ``dare_ties``.
        density: The share of entries that is kept; 1 keeps all.
        majority_sign: How the sign is elected.
    """

    method: str
    density: float = 1.0
    majority_sign: MajoritySign = "total"


def merge(
    arrays: Sequence[Float32Array],
    weights: Sequence[float],
    rule: Rule,
    random: np.random.Generator,
) -> Float32Array:
    """Merge arrays of one shape into one of that shape.

    Args:
        arrays: n arrays, float32.
        weights: n factors.
        rule: How.
        random: Draws the masks of DARE; untouched by the other methods.
    """
    if rule.method != "linear" and rule.density < 1:
        if rule.method in _RANDOM:
            arrays = [_drop_random(each, rule.density, random) for each in arrays]
        else:
            arrays = [keep_largest(each, rule.density) for each in arrays]
    stack = np.stack(arrays)  # (n, …)
    factors = np.asarray(weights, np.float32).reshape(-1, *(1,) * (stack.ndim - 1))
    if rule.method not in _ELECTED:
        return np.asarray((stack * factors).sum(axis=0), np.float32)
    kept = _agreeing(stack, rule.majority_sign)
    total = (stack * factors * kept).sum(axis=0)
    return np.asarray(total / np.maximum(kept.sum(axis=0), 1), np.float32)


def keep_largest(values: Float32Array, density: float) -> Float32Array:
    """Return `values` with all but the ``k = ⌊density · size⌋`` largest magnitudes set to 0.

    Exactly k entries are kept. Of equal magnitudes at the cut, those that come first in row-major
    order are kept, so that the result depends on the values alone.
    """
    kept = int(density * values.size)
    if kept == 0:
        return np.zeros(values.shape, np.float32)
    magnitudes = np.abs(values.reshape(-1))
    cut = np.partition(magnitudes, values.size - kept)[values.size - kept]
    mask = magnitudes > cut
    equal = np.flatnonzero(magnitudes == cut)
    mask[equal[: kept - np.count_nonzero(mask)]] = True
    return np.where(mask.reshape(values.shape), values, np.float32(0))


def _drop_random(values: Float32Array, density: float, random: np.random.Generator) -> Float32Array:
    """Return `values`, each kept with the probability `density` and divided by it, else 0."""
    mask = random.random(values.shape, np.float32) < density
    return np.asarray(values * mask / np.float32(density), np.float32)


def _agreeing(stack: Float32Array, majority_sign: MajoritySign) -> npt.NDArray[np.bool_]:
    """Return which entries have the elected sign; zeros never do."""
    signs = np.sign(stack)
    votes = (stack if majority_sign == "total" else signs).sum(axis=0)
    return np.asarray(signs == np.where(votes >= 0, 1, -1), np.bool_)


def truncated_svd(delta: Float32Array, rank: int) -> tuple[Float32Array, Float32Array]:
    """Return A ``[k, in]`` and B ``[out, k]``, ``B A`` nearest to `delta` (Eckart and Young).

    k is `rank`, or what the shape allows. The singular values are folded into B.
    """
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    return vh[:rank], u[:, :rank] * s[:rank]


def low_rank_svd(
    left: Float32Array, right: Float32Array, rank: int
) -> tuple[Float32Array, Float32Array]:
    """Return the `truncated_svd` of ``left @ right`` without forming the product.

    ``left = Q₁R₁``, ``rightᵀ = Q₂R₂``, and the SVD of the small ``R₁R₂ᵀ`` turned back by Q₁ and Q₂:
    O((out + in) r²) instead of O(out · in · min(out, in)).

    Args:
        left: ``[out, r]``.
        right: ``[r, in]``.
        rank: The largest rank of the result.
    """
    q1, r1 = np.linalg.qr(left.astype(np.float64))
    q2, r2 = np.linalg.qr(right.T.astype(np.float64))
    u, s, vh = np.linalg.svd(r1 @ r2.T, full_matrices=False)
    a = vh[:rank] @ q2.T
    b = q1 @ (u[:, :rank] * s[:rank])
    return a.astype(np.float32), b.astype(np.float32)
