"""Formulas over sizes."""

from __future__ import annotations

import pytest

from lora_export.graph.templates.formulas import NotExactError, evaluate, evaluate_float

SIZES = {"hidden": 12, "heads": 3, "eps": 1e-5}


@pytest.mark.parametrize(
    ("formula", "value"),
    [("hidden", 12), ("3*hidden", 36), ("hidden/heads", 4), ("hidden-2", 10), ("7", 7),
     ("hidden*heads+2*heads", 42)],
)  # fmt: skip
def test_integers(formula: str, value: int) -> None:
    assert evaluate(formula, SIZES) == value


@pytest.mark.parametrize("formula", ["hidden/7", "hidden/0", "", "eps", "width", "2**hidden", "*2"])
def test_what_is_no_integer_is_refused(formula: str) -> None:
    with pytest.raises(NotExactError):
        evaluate(formula, SIZES)


def test_floats() -> None:
    assert evaluate_float("1/sqrt(hidden/heads)", SIZES) == 0.5
    assert evaluate_float("eps", SIZES) == 1e-5
    for formula in ("hidden", "log(hidden)", "sqrt(hidden-20)"):
        with pytest.raises(NotExactError):
            evaluate_float(formula, SIZES)
