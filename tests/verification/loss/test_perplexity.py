"""Perplexity, against torch's cross entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_export.ondevice.judge.golden_files import Case
from lora_export.verification.loss.perplexity import perplexity


def example(seed: int, batch: int, length: int, *, left: int = 0) -> tuple[np.ndarray, Case]:
    random = np.random.default_rng(seed)
    mask = np.ones((batch, length), bool)
    mask[1:, :left] = False
    feeds = {"input_ids": random.integers(0, 11, (batch, length))}
    return random.standard_normal((batch, length, 11)).astype(np.float32), Case(feeds, mask)


def test_against_torch_without_padding():
    torch = pytest.importorskip("torch")
    sides = [example(0, 2, 7, left=3), example(1, 1, 5)]
    losses = []
    for logits, case in sides:
        for row, ids, mask in zip(logits, case.feeds["input_ids"], case.mask, strict=True):
            scores, tokens = torch.from_numpy(row[mask]).double(), torch.from_numpy(ids[mask])
            losses += torch.nn.functional.cross_entropy(
                scores[:-1], tokens[1:], reduction="none"
            ).tolist()
    found = perplexity([each for each, _ in sides], [case for _, case in sides])
    assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-9)


def test_a_model_that_knows_nothing_has_the_vocabulary_s_size():
    _, case = example(2, 3, 6)
    assert perplexity([np.zeros((3, 6, 11), np.float32)], [case]) == pytest.approx(11)


def test_a_single_token_and_last_logits_have_none():
    logits, case = example(3, 1, 1)
    assert perplexity([logits], [case]) is None
    logits, case = example(4, 2, 6)
    assert perplexity([logits[:, -1:]], [case]) is None
    assert perplexity([], []) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_none(value):
    logits, case = example(5, 2, 6)
    logits[0, 2, 3] = value
    assert perplexity([logits], [case]) is None
