"""The masks of traced models, compared with those that transformers makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import masking_utils

from lora_export.graph.trace.masks import additive_mask

WINDOW = 4
PATTERNS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "sliding": masking_utils.sliding_window_causal_mask_function(WINDOW),
    "sliding both ways": masking_utils.sliding_window_bidirectional_mask_function(WINDOW),
}


def padded(where: str, length: int) -> torch.Tensor:
    """One full row, and one whose padding is longer than the window."""
    mask = torch.ones((2, length), dtype=torch.int64)
    hidden = slice(0, length - 3) if where == "left" else slice(3, length)
    mask[1, hidden] = 0
    return mask


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("where", ["left", "right"])
@pytest.mark.parametrize("past", [0, 5])
def test_mask_is_that_of_transformers(pattern: str, where: str, past: int) -> None:
    queries, keys = 9, 9 + past
    given: dict[str, Any] = {
        "batch_size": 2,
        "q_length": queries,
        "kv_length": keys,
        "q_offset": past,
        "mask_function": PATTERNS[pattern],
        "attention_mask": padded(where, keys).bool(),
        "dtype": torch.float32,
    }
    wanted = masking_utils.eager_mask(
        **given, allow_is_causal_skip=False, allow_is_bidirectional_skip=False
    )
    shape = (2, 1, queries, keys)
    assert torch.equal(additive_mask(**given).expand(shape), wanted.expand(shape))
