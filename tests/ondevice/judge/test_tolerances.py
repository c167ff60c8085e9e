"""The one judgement: each way to fail, what is ambiguous, what passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.ondevice.judge.metrics import Metrics
from lora_export.ondevice.judge.tolerances import RELATIVE_L2, judge, tolerance_of

GOOD = Metrics(
    max_abs=1e-6,
    relative_l2=1e-6,
    cosine=1.0,
    top1_agreement=1.0,
    top1_near_ties=0,
    top1_clear_disagreements=0,
    mean_kl=0.0,
    rows=10,
    finite=True,
)


def test_the_table_is_the_promised_one():
    assert RELATIVE_L2 == {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("dtype", ["int8", "float64", "", "FLOAT32"])
def test_a_dtype_without_a_tolerance_is_not_judged(dtype):
    with pytest.raises(UnsupportedError, match="no tolerance"):
        tolerance_of(dtype)
    with pytest.raises(UnsupportedError):
        judge(GOOD, dtype=dtype, effect=1.0)


@pytest.mark.parametrize("effect", [None, 1.0, 2.1e-5])
def test_pass(effect):
    assert judge(GOOD, dtype="float32", effect=effect)[0] == "pass"


@pytest.mark.parametrize("dtype", RELATIVE_L2)
def test_the_tolerance_of_each_dtype(dtype):
    tolerance = RELATIVE_L2[dtype]
    at = replace(GOOD, relative_l2=tolerance)
    above = replace(GOOD, relative_l2=tolerance * 1.01)
    assert judge(at, dtype=dtype, effect=10.0)[0] == "pass"
    verdict, reason = judge(above, dtype=dtype, effect=10.0)
    assert verdict == "fail"
    assert "above the tolerance" in reason
    assert judge(above, dtype=dtype, effect=None)[0] == "fail"


def test_an_error_of_more_than_a_twentieth_of_the_effect_fails():
    at = replace(GOOD, relative_l2=4.9e-6)
    above = replace(GOOD, relative_l2=5.1e-6)
    assert judge(at, dtype="float32", effect=1e-4)[0] == "pass"
    verdict, reason = judge(above, dtype="float32", effect=1e-4)
    assert verdict == "fail"
    assert "effect" in reason
    # What would pass by the dtype alone: a float16 graph that forgot a small adapter.
    forgot = replace(GOOD, relative_l2=1e-3)
    assert judge(forgot, dtype="float16", effect=1e-3)[0] == "fail"


@pytest.mark.parametrize("effect", [0.0, 1e-9, 9.9e-7])
def test_no_measurable_effect_fails_unless_allowed(effect):
    exact = replace(GOOD, relative_l2=0.0)
    verdict, reason = judge(exact, dtype="float32", effect=effect)
    assert verdict == "fail"
    assert "nothing is proven" in reason
    assert judge(exact, dtype="float32", effect=effect, allow_no_effect=True)[0] == "pass"


def test_allowing_no_effect_allows_nothing_else():
    wrong = replace(GOOD, relative_l2=1e-4)
    assert judge(wrong, dtype="float32", effect=0.0, allow_no_effect=True)[0] == "fail"
    small = replace(GOOD, relative_l2=9e-6)
    assert judge(small, dtype="float32", effect=1e-5, allow_no_effect=True)[0] == "fail"


def test_the_base_has_no_effect_and_needs_none():
    assert judge(GOOD, dtype="float32", effect=None)[0] == "pass"


def test_an_effect_that_is_not_a_number_proves_nothing():
    assert judge(GOOD, dtype="float32", effect=float("nan"))[0] == "fail"


def test_near_ties_are_ambiguous():
    verdict, reason = judge(
        replace(GOOD, top1_near_ties=2, top1_agreement=0.8), dtype="float32", effect=1.0
    )
    assert verdict == "ambiguous"
    assert "2 near-tied" in reason


def test_a_clear_disagreement_fails_even_beside_ties_and_within_the_tolerance():
    metrics = replace(GOOD, top1_near_ties=2, top1_clear_disagreements=1)
    verdict, reason = judge(metrics, dtype="float32", effect=1.0)
    assert verdict == "fail"
    assert "1 top-1" in reason


def test_an_error_beside_ties_is_a_failure_not_an_ambiguity():
    metrics = replace(GOOD, top1_near_ties=2, relative_l2=1.0)
    assert judge(metrics, dtype="float32", effect=1.0)[0] == "fail"


@pytest.mark.parametrize("error", [0.0, float("nan"), float("inf")])
def test_what_is_not_finite_fails(error):
    metrics = replace(GOOD, finite=False, relative_l2=error)
    verdict, reason = judge(metrics, dtype="float32", effect=1.0)
    assert verdict == "fail"
    assert "NaN" in reason


def test_an_error_that_is_not_a_number_fails():
    metrics = replace(GOOD, relative_l2=float("nan"))
    assert judge(metrics, dtype="float32", effect=1.0)[0] == "fail"
