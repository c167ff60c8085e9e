"""Margins of choices, and which of them are nearly tied."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.ondevice.judge.near_ties import is_near_tie, top2_margin


def test_the_margin_is_relative_to_the_size_of_the_row():
    row = np.array([[3.0, 1.0, -1.0, 1.0]], np.float32)  # root mean square √(12 / 4)
    assert top2_margin(row) == pytest.approx([2 / np.sqrt(3)])
    assert top2_margin(row * 1000) == pytest.approx(top2_margin(row))


def test_rows_without_a_second_or_finite_logit():
    assert top2_margin(np.ones((2, 1))).tolist() == [np.inf, np.inf]
    assert np.isnan(top2_margin(np.array([[np.inf, np.inf]]))).all()
    assert top2_margin(np.zeros((1, 3))).tolist() == [0.0]


@pytest.mark.parametrize(("of", "errors"), [("row", 4), ("answer", 10)])
def test_a_margin_of_a_few_errors_is_a_near_tie(of, errors):
    tolerance = 2.0**-10
    margins = np.array([0, errors * tolerance, errors * tolerance * 1.001])
    assert is_near_tie(margins, tolerance, of=of).tolist() == [True, True, False]
    assert is_near_tie(margins * 8, tolerance, of=of, scale=8.0).tolist() == [True, True, False]
