"""Integers whose errors cancel in the products: rounding with feedback of errors (GPTQ).

A product computes x W for inputs x, so that an error E = W − Ŵ costs tr(Eᵀ H E), H = Σ xᵀ x being
the second moments of the inputs. With H = U D Uᵀ, U unit upper triangular, that is
Σₖ Dₖ ‖(Uᵀ E)ₖ‖². The rows are rounded one after another, those with the largest inputs first, each
to the nearest value of

    tₖ = wₖ + Σ_{j<k} U[j, k] · eⱼ        eⱼ = wⱼ − ŵⱼ, the errors that were made before

so that each summand is what the rounding of one row leaves (arXiv 2210.17323, in the form of
arXiv 2307.13304). An integer is one of the two neighbours of W / s, whatever the feedback asks for:
a stored integer can then be compared with its weight alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.weights.quantization.ranges import as_float32, integer_range

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_export.core.dtypes import Float32Array

__all__ = ["round_with_feedback"]

_DAMPING: Final = 0.01
"""The share of its mean that is added to H's diagonal: the inputs are a sample."""
_PIECE: Final = 64
"""Rows whose errors are fed back one by one; those of rows before come in by one product."""


def round_with_feedback(
    values: Float32Array,
    scales: npt.NDArray[Any],
    moments: Float32Array,
    *,
    bits: int,
) -> npt.NDArray[np.int8]:
    """Return integers whose errors cancel for inputs with these second moments.

    Args:
        values: W, ``[K, N]``.
        scales: Those of its blocks, ``[K / B, N]``.
        moments: H, ``[K, K]``: the sum of xᵀ x over inputs, of which only ratios count.
        bits: 4 or 8.

    Raises:
        ValueError: The shapes do not go together, or a moment is not a number.
    """
    rows = values.shape[0]
    if moments.shape != (rows, rows) or rows % scales.shape[0]:
        msg = f"moments {moments.shape} and scales {scales.shape} do not go with {values.shape}"
        raise ValueError(msg)
    if not np.isfinite(moments).all():
        msg = "an input that it is multiplied with is infinite or not a number"
        raise ValueError(msg)
    integers, factors, size = integer_range(bits), as_float32(scales), rows // scales.shape[0]
    order = np.argsort(-np.diagonal(moments), kind="stable")
    feedback = _feedback(moments, order)
    q = np.empty(values.shape, np.int8)
    errors = np.empty_like(values)  # in the order of rounding
    for start in range(0, rows, _PIECE):
        piece = order[start : start + _PIECE]
        targets = values[piece] + feedback[:start, start : start + len(piece)].T @ errors[:start]
        for at, row in enumerate(piece):
            before = slice(start, start + at)
            targets[at] += feedback[before, start + at] @ errors[before]
            scale = factors[row // size]
            exact = values[row] / scale
            wanted = np.rint(targets[at] / scale)
            np.clip(wanted, np.floor(exact), np.ceil(exact), out=wanted)
            np.clip(wanted, integers.lowest, integers.highest, out=wanted)
            q[row] = wanted
            errors[start + at] = values[row] - wanted * scale
    return q


def _feedback(moments: Float32Array, order: npt.NDArray[np.intp]) -> Float32Array:
    """Return U of H = U D Uᵀ, rows and columns in the order of rounding.

    With both axes reversed it is a Cholesky factor, its columns divided by their diagonal.
    """
    back = order[::-1]
    mirrored = moments[np.ix_(back, back)].astype(np.float64)
    mean = float(np.diagonal(mirrored).mean())
    mirrored[np.diag_indices_from(mirrored)] += _DAMPING * mean if mean > 0 else 1.0
    factor = np.linalg.cholesky(mirrored)[::-1, ::-1]
    return np.ascontiguousarray(factor / np.diagonal(factor), np.float32)
