"""The inputs that the tests of sessions run, and how near results have to be."""

from __future__ import annotations

import numpy as np

TASK = "text-classification"
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def feeds_of(rows: int = 2, length: int = 7, *, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(3, 200, (rows, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


FEEDS = feeds_of()
