"""Rounding with feedback of errors: against brute force, its bound, and what it is given wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lora_export.weights.quantization.blocks import dequantize, quantize_blocks
from lora_export.weights.quantization.error_feedback import round_with_feedback

BLOCK = 16


def example(
    rows: int = 96, columns: int = 24, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return W, its integers rounded to nearest, its scales, and moments of correlated inputs."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns)).astype(np.float32)
    q, scales = quantize_blocks(
        values, bits=4, block_size=BLOCK, method="search", scale_dtype=np.float32
    )
    inputs = random.standard_normal((500, rows)) @ random.standard_normal((rows, rows))
    inputs *= np.exp(random.standard_normal(rows))
    return values, q, scales, (inputs.T @ inputs).astype(np.float32)


def cost(values: np.ndarray, q: np.ndarray, scales: np.ndarray, moments: np.ndarray) -> float:
    """‖x (W − Ŵ)‖² over all inputs."""
    error = (values - dequantize(q, scales, BLOCK)).astype(np.float64)
    return float(np.vdot(error, moments.astype(np.float64) @ error))


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_products_become_smaller_and_integers_stay_neighbours(seed: int) -> None:
    values, nearest, scales, moments = example(seed=seed)
    found = round_with_feedback(values, scales, moments, bits=4)
    assert found.dtype == np.int8
    assert cost(values, found, scales, moments) < 0.75 * cost(values, nearest, scales, moments)
    place = np.clip(values / np.repeat(scales, BLOCK, axis=0), -8, 7)
    assert 0.5 < np.abs(place - found).max() <= 1


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e12])
def test_inputs_that_are_not_correlated_leave_every_integer_the_nearest(factor: float) -> None:
    values, nearest, scales, moments = example()
    alone = np.diag(np.diagonal(moments)) * np.float32(factor)
    assert np.array_equal(round_with_feedback(values, scales, alone, bits=4), nearest)


def test_it_is_what_the_definition_says() -> None:
    """The feedback of every row by itself, from the inverse of what is left (arXiv 2210.17323)."""
    values, _, scales, moments = example(rows=32, columns=3, seed=7)
    order = np.argsort(-np.diagonal(moments), kind="stable")
    h = moments[np.ix_(order, order)].astype(np.float64)
    h[np.diag_indices(32)] += 0.01 * np.diagonal(h).mean()
    w, scale = values[order].astype(np.float64), np.repeat(scales, BLOCK, axis=0)[order]
    exact, expected = w / scale, np.empty((32, 3))
    for row in range(32):
        inverse = np.linalg.inv(h[row:, row:])
        wanted = np.clip(np.rint(w[row] / scale[row]), np.floor(exact[row]), np.ceil(exact[row]))
        expected[row] = np.clip(wanted, -8, 7)
        error = (w[row] - expected[row] * scale[row]) / inverse[0, 0]
        w[row:] -= np.outer(inverse[:, 0], error)
    found = round_with_feedback(values, scales, moments, bits=4)[order]
    assert np.array_equal(found, expected)


def test_of_a_few_rows_it_is_near_the_best_of_all_choices() -> None:
    values, nearest, scales, moments = example(rows=BLOCK, columns=1, seed=3)
    few = slice(0, 8)
    moments[8:, :] = moments[:, 8:] = 0
    found = round_with_feedback(values, scales, moments, bits=4)
    place = (values / scales)[:8, 0]
    choices = itertools.product(*((np.floor(each), np.ceil(each)) for each in place))
    best = np.inf
    for choice in choices:
        other = nearest.copy()
        other[few, 0] = np.clip(choice, -8, 7)
        best = min(best, cost(values, other, scales, moments))
    assert cost(values, found, scales, moments) < 3 * best
    assert cost(values, found, scales, moments) < cost(values, nearest, scales, moments)


def test_inputs_that_are_always_zero_and_no_inputs_at_all() -> None:
    values, nearest, scales, moments = example()
    moments[5], moments[:, 5] = 0, 0
    found = round_with_feedback(values, scales, moments, bits=4)
    assert np.array_equal(found[5], nearest[5])
    nothing = np.zeros_like(moments)
    assert np.array_equal(round_with_feedback(values, scales, nothing, bits=4), nearest)


def test_the_same_again_gives_the_same() -> None:
    values, _, scales, moments = example()
    once, twice = (round_with_feedback(values, scales, moments, bits=4) for _ in range(2))
    assert np.array_equal(once, twice)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_moments_that_are_no_numbers_or_of_another_weight_are_refused(wrong: float) -> None:
    values, _, scales, moments = example()
    with pytest.raises(ValueError, match="do not go with"):
        round_with_feedback(values, scales, moments[:-1, :-1], bits=4)
    moments[3, 3] = wrong
    with pytest.raises(ValueError, match="not a number"):
        round_with_feedback(values, scales, moments, bits=4)
