"""Survival on outputs, against the formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_export.ondevice.judge.golden_files import Case, valid_rows
from lora_export.verification.loss.survival import FourOutputs, measure_survival

SHAPES = ((3, 5), (1, 5), (4, 5))


def draw(random: np.random.Generator, scale: float = 1.0) -> list[np.ndarray]:
    return [(scale * random.standard_normal(shape)).astype(np.float32) for shape in SHAPES]


def add(*sides: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sum(parts, axis=0) for parts in zip(*sides, strict=True)]


def four(seed: int, *, gain: float = 1.0, noise: float = 0.0) -> FourOutputs:
    """The outputs of a base whose quantization errs, and of an adapter that is `gain` as strong."""
    random = np.random.default_rng(seed)
    base, effect, error = draw(random), draw(random, 0.3), draw(random, 0.5)
    quantized = add(base, error)
    left = add([gain * each for each in effect], draw(random, noise))
    return FourOutputs(add(base, effect), base, add(quantized, left), quantized)


def joined(rows: Any) -> np.ndarray:
    return np.concatenate(rows).astype(np.float64).ravel()


@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.floats(0, 1))
def test_against_the_formulas_over_all_rows_joined(seed, gain, noise):
    outputs = four(seed, gain=gain, noise=noise)
    found = measure_survival(outputs)
    e = joined(outputs.adapter) - joined(outputs.base)
    left = joined(outputs.quantized_adapter) - joined(outputs.quantized_base)
    assert found.rows == 8
    assert found.effect == pytest.approx(
        np.linalg.norm(e) / np.linalg.norm(joined(outputs.adapter))
    )
    assert found.gain == pytest.approx(left @ e / (e @ e), abs=1e-9)
    length = np.linalg.norm(left) * np.linalg.norm(e)
    assert found.cosine == pytest.approx(left @ e / length if length else 0.0, abs=1e-9)
    assert found.gain_interval is not None
    low, high = found.gain_interval
    assert low <= high


def test_an_error_of_the_base_that_both_have_costs_nothing():
    found = measure_survival(four(0))
    assert found.gain == pytest.approx(1.0, abs=1e-6)
    assert found.cosine == pytest.approx(1.0, abs=1e-6)


def test_an_adapter_that_is_gone_has_gain_and_cosine_zero():
    outputs = four(1, gain=0.0)
    gone = FourOutputs(
        outputs.adapter, outputs.base, outputs.quantized_base, outputs.quantized_base
    )
    found = measure_survival(gone)
    assert (found.gain, found.cosine) == (0.0, 0.0)
    assert found.finite


def test_without_an_effect_there_is_nothing_to_survive():
    outputs = four(2)
    same = FourOutputs(
        outputs.base, outputs.base, outputs.quantized_adapter, outputs.quantized_base
    )
    found = measure_survival(same)
    assert found.effect == 0.0
    assert found.gain is found.cosine is found.gain_interval is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_no_gain(value):
    outputs = four(3)
    outputs.quantized_adapter[1][0, 2] = value
    found = measure_survival(outputs)
    assert not found.finite
    assert found.gain is found.cosine is None
    assert found.effect > 0


def test_a_float_output_that_is_not_finite_has_no_gain_either():
    outputs = four(3)
    outputs.adapter[0][0, 0] = np.nan
    found = measure_survival(outputs)
    assert found.finite  # the quantized ones
    assert found.gain is None


def test_padding_does_not_count():
    random = np.random.default_rng(4)
    mask = np.array([[True, True, True], [True, False, False]])
    case = Case({}, mask)
    sides = [random.standard_normal((2, 3, 5)).astype(np.float32) for _ in range(4)]
    clean = FourOutputs(*([valid_rows(each, case, per_token=True)] for each in sides))
    for each in sides:
        each[1, 1:] = random.standard_normal((2, 5)) * 1e3
    padded = FourOutputs(*([valid_rows(each, case, per_token=True)] for each in sides))
    assert measure_survival(clean) == measure_survival(padded)
    assert measure_survival(clean).rows == 4


def test_a_single_row_has_no_interval():
    random = np.random.default_rng(5)
    sides = [random.standard_normal((1, 4)).astype(np.float32) for _ in range(4)]
    found = measure_survival(FourOutputs(*([each] for each in sides)))
    assert found.gain is not None
    assert found.gain_interval is None
    assert found.rows == 1


def test_stacked_outputs_are_one_row_each():
    random = np.random.default_rng(6)
    sides = [random.standard_normal((3, 4, 2)).astype(np.float32) for _ in range(4)]
    deep = measure_survival(FourOutputs(*([each] for each in sides)))
    flat = measure_survival(FourOutputs(*([each.reshape(3, 8)] for each in sides)))
    assert deep == flat


def test_the_intervals_are_reproducible_and_hold_the_truth_about_as_often_as_they_say():
    outputs = four(7, noise=0.2)
    assert measure_survival(outputs, seed=1) == measure_survival(outputs, seed=1)
    held = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        base, effect = (random.standard_normal((64, 3)) for _ in range(2))
        noisy = base + effect + 0.5 * random.standard_normal((64, 3))
        found = measure_survival(FourOutputs([base + effect], [base], [noisy], [base]))
        assert found.gain_interval is not None
        low, high = found.gain_interval
        held += low <= 1.0 <= high
    assert held >= 34
