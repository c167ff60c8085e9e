"""Metrics against the formulas in float64, and cases worked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.ondevice.judge.metrics import compare, relative_l2


def rows(seed: int, *shapes: tuple[int, int], dtype=np.float32) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares


@given(st.integers(0, 2**32 - 1), st.floats(0, 2), st.sampled_from([np.float32, np.float16]))
def test_against_the_formulas_over_all_rows_joined(seed, noise, dtype):
    expected = rows(seed, (3, 5), (1, 5), (4, 5), dtype=dtype)
    actual = [
        (e + noise * n).astype(dtype)
        for e, n in zip(expected, rows(seed + 1, (3, 5), (1, 5), (4, 5)), strict=True)
    ]
    found = compare(actual, expected, choices=True, tolerance=1e-5)
    a = np.concatenate(actual).astype(np.float64)
    e = np.concatenate(expected).astype(np.float64)
    assert found.rows == 8
    assert found.finite
    assert found.max_abs == pytest.approx(np.abs(a - e).max(), rel=1e-12, abs=0)
    assert found.relative_l2 == pytest.approx(
        np.linalg.norm(a - e) / np.linalg.norm(e), rel=1e-12, abs=0
    )
    assert found.cosine == pytest.approx(
        (a * e).sum() / np.linalg.norm(a) / np.linalg.norm(e), rel=1e-12
    )
    agree = a.argmax(-1) == e.argmax(-1)
    assert found.top1_agreement == agree.mean()
    assert found.top1_near_ties + found.top1_clear_disagreements == (~agree).sum()
    p, q = softmax(e), softmax(a)
    assert found.mean_kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-9, abs=1e-14)


def test_equal_outputs():
    values = rows(0, (4, 3))
    found = compare(values, values, choices=True, tolerance=1e-5)
    assert (found.max_abs, found.relative_l2, found.mean_kl) == (0.0, 0.0, 0.0)
    assert found.top1_agreement == 1.0
    assert found.cosine == pytest.approx(1.0, rel=1e-15)


def test_a_case_by_hand():
    actual, expected = [np.array([[3.0, 4.0]])], [np.array([[0.0, 4.0]])]
    found = compare(actual, expected, choices=True, tolerance=1e-5)
    assert found.max_abs == 3.0
    assert found.relative_l2 == 0.75
    assert found.cosine == 0.8
    p = 1 / (1 + math.exp(-4))  # the reference's second choice
    q = 1 / (1 + math.exp(-1))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.mean_kl == pytest.approx(kl, rel=1e-12)


def test_the_error_is_not_symmetric():
    small, large = [np.array([[1.0]])], [np.array([[2.0]])]
    assert relative_l2(small, large) == 0.5
    assert relative_l2(large, small) == 1.0


def test_nothing_over_nothing():
    zero, one = [np.zeros((2, 2))], [np.ones((2, 2))]
    assert relative_l2(zero, zero) == 0.0
    assert relative_l2(one, zero) == math.inf
    assert relative_l2(zero, one) == 1.0
    assert compare(zero, zero, choices=False, tolerance=1e-5).cosine == 1.0


def test_small_differences_of_float32_are_not_lost():
    expected = [np.full((1, 4), 1e4, np.float32)]
    actual = [np.nextafter(expected[0], np.float32(np.inf))]
    step = float(actual[0][0, 0]) - 1e4
    assert relative_l2(actual, expected) == pytest.approx(step / 1e4, rel=1e-12)


def test_squares_of_float16_do_not_overflow():
    expected = [np.full((1, 4), 6e4, np.float16)]
    found = compare(expected, expected, choices=True, tolerance=5e-3)
    assert found.relative_l2 == 0.0
    assert found.finite


@pytest.mark.parametrize(("margin", "tied"), [(3.9e-5, 1), (4.1e-5, 0)])
def test_a_margin_of_less_than_four_tolerated_errors_is_a_tie(margin, tied):
    # Row of size (root mean square) 1, tolerance 1e-5: ties are below 4e-5.
    expected = [np.array([[1.0, 1.0 - margin, -1.0, -1.0]])]
    actual = [np.array([[1.0 - margin, 1.0, -1.0, -1.0]])]
    found = compare(actual, expected, choices=True, tolerance=1e-5)
    assert (found.top1_near_ties, found.top1_clear_disagreements) == (tied, 1 - tied)
    assert found.top1_agreement == 0.0


def test_the_margin_is_to_the_choice_of_the_graph_not_to_the_second_best():
    expected = [np.array([[1.0, 1.0 - 1e-6, -3.0]])]
    actual = [np.array([[1.0, 1.0 - 1e-6, 3.0]])]
    found = compare(actual, expected, choices=True, tolerance=1e-5)
    assert found.top1_clear_disagreements == 1


def test_without_choices_there_is_no_top1():
    values = rows(0, (4, 3))
    found = compare(values, values, choices=False, tolerance=1e-5)
    assert found.top1_agreement is None
    assert found.mean_kl is None
    assert found.top1_near_ties == found.top1_clear_disagreements == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("choices", [False, True])
def test_what_is_not_finite_is_seen_and_reported_as_json(bad, choices):
    expected = rows(0, (4, 3))
    actual = [expected[0].copy()]
    actual[0][2, 1] = bad
    found = compare(actual, expected, choices=choices, tolerance=1e-5)
    assert not found.finite
    table = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert table["relative_l2"] is None
    assert table["finite"] is False


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        relative_l2(rows(0, (1, 2)), rows(0, (1, 2), (1, 2)))
