"""The entries that pruning keeps, with `torch.topk` as the oracle where it is defined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_export.adapters.merging import Rule, keep_largest, merge


def by_sorting(values: np.ndarray, density: float) -> np.ndarray:
    """Return the rule's result by a stable sort of all entries."""
    order = np.argsort(-np.abs(values.reshape(-1)), kind="stable")[: int(density * values.size)]
    found = np.zeros(values.size, np.float32)
    found[order] = values.reshape(-1)[order]
    return found.reshape(values.shape)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    levels=st.sampled_from([1, 2, 5]),
    density=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=200, deadline=None)
def test_of_equal_magnitudes_the_first_are_kept(rows, columns, levels, density, seed):
    random = np.random.default_rng(seed)
    values = random.integers(-levels, levels + 1, (rows, columns)).astype(np.float32)
    assert np.array_equal(keep_largest(values, density), by_sorting(values, density))


@pytest.mark.parametrize("density", [0.0, 1 / 12, 0.5, 0.51, 11 / 12, 0.999])
def test_exactly_k_entries_are_kept_of_an_array_of_equals(density):
    values = np.full((3, 4), -2.0, np.float32)
    values[1] = 2
    kept = keep_largest(values, density) != 0
    k = int(density * 12)
    assert np.array_equal(kept.reshape(-1), np.arange(12) < k)


def test_a_sign_makes_no_difference_at_the_cut():
    values = np.asarray([[1, -3, 3], [-3, 3, 1]], np.float32)
    assert keep_largest(values, 0.5).tolist() == [[0, -3, 3], [-3, 0, 0]]


@pytest.mark.parametrize("density", [0.1, 0.34, 0.5, 0.9])
def test_without_equal_magnitudes_it_is_topk(density):
    import torch

    values = np.random.default_rng(1).standard_normal((13, 17)).astype(np.float32)
    flat = torch.from_numpy(values).reshape(-1)
    chosen = torch.topk(flat.abs(), int(density * values.size)).indices
    expected = torch.zeros_like(flat)
    expected[chosen] = flat[chosen]
    assert np.array_equal(keep_largest(values, density), expected.reshape(13, 17).numpy())


@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_methods_prune_by_this_rule(method):
    """Arrays of ±1 in bfloat16 or float16 are nothing but equal magnitudes."""
    random = np.random.default_rng(3)
    one, two = (random.choice([-1.0, 1.0], (4, 6)).astype(np.float32) for _ in range(2))
    found = merge([one, two], [1.0, 0.5], Rule(method, 0.25), random)
    assert np.array_equal(found != 0, np.arange(24).reshape(4, 6) < 6)
