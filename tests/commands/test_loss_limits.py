"""The limits of quantization loss as users give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_export.commands.build_checks import require_recipe
from lora_export.commands.loss_limits import loss_gates, require_limits
from lora_export.commands.recipe import make_recipe
from lora_export.core.errors import UsageError
from lora_export.verification.loss.gates import LossGates


def test_what_is_not_given_is_as_usual():
    assert loss_gates(None, None, None) == LossGates()
    given = loss_gates(0.9, 0.1, 0.01)
    assert (given.min_gain, given.max_loss, given.max_metric_drop) == (0.9, 0.1, 0.01)
    assert loss_gates(0.0, None, None).min_gain == 0.0


@pytest.mark.parametrize(
    ("limits", "there", "message", "hint"),
    [
        ({"min_gain": 0.9}, {"is_quantized": False}, "--min-gain .* nothing is quantized", "int4"),
        ({"max_loss": 0.1}, {"has_base": False}, "needs the base", "--base"),
        ({"max_metric_drop": 0.1}, {"has_dataset": False}, "needs a data set", "--dataset"),
        ({"max_loss": float("nan")}, {}, r"--max-loss .* cannot be nan", "0.1"),
        ({"max_loss": float("inf")}, {}, "cannot be inf", "0.1"),
        ({"min_gain": -0.1}, {}, "cannot be -0.1", "0.1"),
    ],
)
def test_limits_that_nothing_can_be_held_against_are_refused(
    limits: dict[str, Any], there: dict[str, bool], message: str, hint: str
) -> None:
    whole = {"min_gain": None, "max_loss": None, "max_metric_drop": None, **limits}
    usual = {"is_quantized": True, "has_base": True, "has_dataset": True, **there}
    with pytest.raises(UsageError, match=message) as caught:
        require_limits(**whole, **usual)
    assert hint in str(caught.value.hint)


def test_without_limits_nothing_is_asked_for():
    require_limits(None, None, None, is_quantized=False, has_base=False, has_dataset=False)
    require_limits(0.8, 0.1, None, is_quantized=True, has_dataset=False)


@pytest.mark.parametrize(
    ("verify", "quantize", "message"),
    [
        ({"max_loss": 0.1}, None, "nothing is quantized"),
        ({"max_metric_drop": 0.1}, "int4", "needs a data set"),
    ],
)
def test_a_recipe_s_limits_are_checked_before_anything_is_done(
    verify: dict[str, Any], quantize: str | None, message: str
) -> None:
    table = {"base": "b", "adapters": [], "output": "o", "verify": verify}
    recipe = make_recipe(
        {**table, **({"quantize": quantize} if quantize else {})}, folder=Path("/")
    )
    with pytest.raises(UsageError, match=message):
        require_recipe(recipe)


@pytest.mark.parametrize("limits", [{"min_gain": 1.1}, {"max_loss": 0}, {"max_metric_drop": -1}])
def test_a_recipe_s_limits_are_numbers_that_can_be_kept(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"verify.{next(iter(limits))}"):
        make_recipe({"base": "b", "output": "o", "verify": limits}, folder=Path("/"))
