"""McNemar's test and the paired bootstrap against scipy, and what they conclude."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lora_export.verification.datasets.paired import bootstrap_difference, judge_pair, mcnemar
from lora_export.verification.datasets.scores import share


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_differences_is_exact_and_quick():
    assert mcnemar(9_900, 10_100) == pytest.approx(stats.binomtest(9_900, 20_000).pvalue, rel=1e-9)
    assert mcnemar(20_000, 30_000) == pytest.approx(0.0, abs=1e-300)


def hits(values):
    return np.stack([np.array(values, float), np.ones(len(values))], axis=-1)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    random = np.random.default_rng(3)
    first = (random.random(300) < 0.8).astype(float)
    second = np.where(random.random(300) < 0.15, 1 - first, first)
    difference, (low, high) = bootstrap_difference(hits(first), hits(second), share, seed=0)
    expected = stats.bootstrap(
        (first, second), lambda a, b: a.mean() - b.mean(),
        paired=True, vectorized=False, method="percentile", n_resamples=4000, rng=1,
    ).confidence_interval  # fmt: skip
    assert difference == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_equal_scores_have_no_interval_and_the_seed_decides_the_others():
    same = hits([1, 0, 1])
    assert bootstrap_difference(same, same, share, seed=0) == (0.0, (0.0, 0.0))
    pair = hits([1, 1, 0, 0] * 10), hits([1, 0, 1, 0] * 10)
    assert bootstrap_difference(*pair, share, seed=5) == bootstrap_difference(*pair, share, seed=5)
    assert bootstrap_difference(*pair, share, seed=5) != bootstrap_difference(*pair, share, seed=6)


def test_a_real_loss_is_found_and_an_equal_model_is_not_blamed():
    verdicts = []
    for trial in range(60):
        random = np.random.default_rng(trial)
        reference = (random.random(400) < 0.9).astype(float)
        equal = np.where(random.random(400) < 0.02, 1 - reference, reference)
        worse = np.where(random.random(400) < 0.08, 0.0, reference)
        for model in (equal, worse):
            _, interval = bootstrap_difference(hits(model), hits(reference), share, seed=trial)
            gained, lost = (model > reference).sum(), (model < reference).sum()
            verdicts.append(judge_pair(interval, 0.01, mcnemar(int(gained), int(lost)))[0])
    assert verdicts[1::2].count("fail") == 60
    # `equal` loses a little by construction: nine of ten of what it flips was right
    assert verdicts[::2].count("pass") < 60


@pytest.mark.parametrize(
    ("interval", "p_value", "expected"),
    [
        ((0.0, 0.0), 1.0, "pass"),
        ((-0.005, 0.01), None, "pass"),
        ((-0.005, 0.02), 0.3, "ambiguous"),
        ((-0.02, 0.02), None, "ambiguous"),
        ((-0.04, -0.02), None, "fail"),
        ((0.02, 0.04), None, "fail"),
        ((-0.005, 0.0), 0.01, "fail"),
    ],
)
def test_the_verdict(interval, p_value, expected):
    verdict, reason = judge_pair(interval, 0.01, p_value)
    assert verdict == expected
    assert reason
