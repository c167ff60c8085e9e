"""Perplexity of a decoder on its own inputs: ``exp(mean of −log p(next token))``, float64.

The inputs of a verification are random tokens, on which a perplexity is large for every model; two
models are compared by their ratio. Texts are scored by a data set (`verification/datasets`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.ondevice.judge.golden_files import Case

__all__ = ["perplexity"]

Array = npt.NDArray[Any]


def perplexity(logits: Sequence[Array], cases: Sequence[Case]) -> float | None:
    """Return the perplexity of logits on the inputs that they were computed for.

    Args:
        logits: ``[batch, length, vocabulary]`` for each input.
        cases: The inputs. A token counts where neither it nor the one before it is padding.

    None where no token follows another, the logits are those of the last position only, or the
    result is not finite.
    """
    lost, count = 0.0, 0
    for scores, case in zip(logits, cases, strict=True):
        ids = np.asarray(case.feeds["input_ids"])
        if scores.shape[:2] != ids.shape:
            return None
        counted = case.mask[:, 1:] & case.mask[:, :-1]
        rows = scores[:, :-1][counted].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            rows -= rows.max(axis=-1, keepdims=True, initial=-np.inf)
            chosen = np.take_along_axis(rows, ids[:, 1:][counted][:, None], axis=1)[:, 0]
            lost += float((np.log(np.exp(rows).sum(-1)) - chosen).sum())
        count += len(rows)
    with np.errstate(over="ignore"):
        found = float(np.exp(lost / count)) if count else float("nan")
    return found if np.isfinite(found) else None
