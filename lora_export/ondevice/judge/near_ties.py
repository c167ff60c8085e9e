"""Near ties: choices that rounding decides, where another choice is not an error.

The margin of a choice is the distance of two logits over the root mean square of their row. A graph
may have a relative error of the tolerated size over the whole row, and a few of those close a
margin.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["NEAR_TIE_ERRORS", "is_near_tie", "top2_margin"]

NEAR_TIE_ERRORS: Final[dict[str, float]] = {"row": 4.0, "answer": 10.0}
"""How many errors of the tolerated size a margin may have and still be a near tie.

``row``: graph and reference computed a row of logits from the same inputs.
``answer``: a class that was chosen, or a token that was written with the graph's own cache.
"""


def is_near_tie(
    margin: Any, tolerance: float, *, of: Literal["row", "answer"], scale: Any = 1.0
) -> Any:
    """Whether a margin is a near tie; for an array, whether each is.

    >>> is_near_tie(3e-5, 1e-5, of="row"), is_near_tie(5e-5, 1e-5, of="row")
    (True, False)

    Args:
        margin: The distance of two logits.
        tolerance: The relative L2 error that is tolerated.
        of: A key of `NEAR_TIE_ERRORS`.
        scale: The root mean square of the row, where `margin` is not divided by it already.
    """
    return margin <= NEAR_TIE_ERRORS[of] * tolerance * scale


def top2_margin(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the margin of the two largest logits of each row, ``[…, columns]`` → ``[…]``.

    A row of one column has an infinite margin; one with infinite logits has NaN.
    """
    wide = logits.astype(np.float64)
    ordered = np.sort(wide, axis=-1)
    second = ordered[..., -2] if ordered.shape[-1] > 1 else -np.inf
    with np.errstate(invalid="ignore"):
        scale = np.sqrt((wide**2).mean(axis=-1))
        return np.asarray((ordered[..., -1] - second) / np.maximum(scale, np.finfo(float).tiny))
