"""The gates of quantization loss: the table of limits, and the words of a failure."""

from __future__ import annotations

import math

import pytest

from lora_export.core.reports.quantization_report import LayerLossRow, LossRow
from lora_export.verification.loss.gates import (
    LossGates,
    MetricDrop,
    judge_loss,
    summarize,
    weakest_layers,
    worst_loss,
)

HEALTHY = LossRow(
    effect=0.3, gain=1.01, gain_interval=(0.97, 1.05), cosine=0.98, cosine_interval=(0.97, 0.99),
    relative_l2=0.04, rows=64,
)  # fmt: skip
LAYERS = {
    "layers.0.q": LayerLossRow(scheme="int4", block_size=32, gain=0.99, cosine=0.99),
    "layers.1.q": LayerLossRow(scheme="int4", block_size=32, gain=0.02, cosine=0.1),
    "layers.2.q": LayerLossRow(scheme="int4", block_size=32, gain=3.0, cosine=0.9),
}


def verdicts(loss: LossRow, gates: LossGates | None = None, **settings) -> dict[str, str]:
    rows = judge_loss(gates or LossGates(), loss, has_adapter=True, **settings)
    return {row.gate: row.verdict for row in rows}


def test_a_healthy_adapter_passes_all_three_gates():
    assert verdicts(HEALTHY) == {"min_gain": "pass", "max_gain": "pass", "min_cosine": "pass"}


@pytest.mark.parametrize(
    ("update", "gate", "verdict"),
    [
        ({"gain": 0.79}, "min_gain", "fail"),
        ({"gain": 0.8, "gain_interval": (0.8, 0.9)}, "min_gain", "pass"),
        ({"gain": 0.85, "gain_interval": (0.79, 0.9)}, "min_gain", "ambiguous"),
        ({"gain": -1.0}, "min_gain", "fail"),
        ({"gain": 1.26}, "max_gain", "fail"),
        ({"gain": 1.25, "gain_interval": (1.2, 1.25)}, "max_gain", "pass"),
        ({"gain": 1.2, "gain_interval": (1.1, 1.3)}, "max_gain", "ambiguous"),
        ({"cosine": 0.5}, "min_cosine", "fail"),
        ({"cosine": 0.82, "cosine_interval": (0.7, 0.9)}, "min_cosine", "ambiguous"),
        ({"gain": 0.9, "gain_interval": None}, "min_gain", "pass"),
        ({"gain": math.nan}, "min_gain", "fail"),
        ({"gain": 0.9, "gain_interval": (math.nan, math.nan)}, "min_gain", "ambiguous"),
    ],
)
def test_a_figure_outside_fails_and_an_interval_outside_is_ambiguous(update, gate, verdict):
    assert verdicts(HEALTHY.model_copy(update=update))[gate] == verdict


def test_limits_can_be_set():
    loss = HEALTHY.model_copy(update={"gain": 0.5, "gain_interval": (0.45, 0.55)})
    assert verdicts(loss)["min_gain"] == "fail"
    assert verdicts(loss, LossGates(min_gain=0.4))["min_gain"] == "pass"


def test_max_loss_is_judged_where_it_is_given():
    assert "max_loss" not in verdicts(HEALTHY)
    assert verdicts(HEALTHY, LossGates(max_loss=0.04))["max_loss"] == "pass"
    assert verdicts(HEALTHY, LossGates(max_loss=0.039))["max_loss"] == "fail"
    lost = HEALTHY.model_copy(update={"relative_l2": None})
    assert verdicts(lost, LossGates(max_loss=0.1))["max_loss"] == "fail"


def test_a_drop_of_the_metric_is_judged_by_its_interval():
    gates = LossGates(max_metric_drop=0.01)
    drops = (
        (0.0, (-0.005, 0.005)), (0.008, (0.0, 0.02)), (0.02, (0.005, 0.03)), (-0.05, (-0.1, 0.0)),
    )  # fmt: skip
    found = [verdicts(HEALTHY, gates, drop=MetricDrop(*drop))["max_metric_drop"] for drop in drops]
    assert found == ["pass", "ambiguous", "fail", "pass"]
    assert "max_metric_drop" not in verdicts(HEALTHY, gates)
    assert "max_metric_drop" not in verdicts(HEALTHY, drop=MetricDrop(0.5, (0.4, 0.6)))


def test_a_base_has_no_adapter_to_lose():
    loss = LossRow(relative_l2=0.1, rows=4)
    assert judge_loss(LossGates(), loss, has_adapter=False) == []
    assert summarize([], loss, {}, adapter=None) == ("ungated", "no limit was set")
    rows = judge_loss(LossGates(max_loss=0.05), loss, has_adapter=False)
    assert summarize(rows, loss, {}, adapter=None) == (
        "fail", "the relative L2 error 0.1 is above 0.05",
    )  # fmt: skip


def test_a_failure_names_the_adapter_and_the_weakest_layers():
    loss = HEALTHY.model_copy(update={"gain": 0.1, "cosine": 0.2})
    rows = judge_loss(LossGates(), loss, has_adapter=True)
    verdict, reason = summarize(rows, loss, LAYERS, adapter="intents")
    assert verdict == "fail"
    assert reason == (
        "the adapter 'intents' does not survive quantization: the gain 0.1 is below 0.8; "
        "the cosine 0.2 is below 0.8; weakest layers: layers.1.q, layers.2.q, layers.0.q"
    )


def test_an_effect_that_the_session_rounds_off_is_told_from_one_that_the_integers_lost():
    loss = HEALTHY.model_copy(update={"cosine": 0.4, "exact_gain": 1.0, "exact_cosine": 0.99})
    rows = judge_loss(LossGates(), loss, has_adapter=True)
    verdict, reason = summarize(rows, loss, LAYERS, adapter="a")
    assert verdict == "fail"
    assert "the stored weights hold it (gain 1, cosine 0.99)" in reason
    assert "accuracy_level 0" in reason
    assert "weakest layers" not in reason
    lost = loss.model_copy(update={"exact_cosine": 0.5})
    assert "weakest layers" in summarize(rows, lost, LAYERS, adapter="a")[1]


def test_what_is_unclear_says_so():
    loss = HEALTHY.model_copy(update={"cosine": 0.81, "cosine_interval": (0.6, 0.95)})
    rows = judge_loss(LossGates(), loss, has_adapter=True)
    verdict, reason = summarize(rows, loss, {}, adapter="a")
    assert verdict == "ambiguous"
    assert reason == (
        "the adapter 'a' may not survive quantization: the interval [0.6, 0.95] of the cosine "
        "reaches below 0.8"
    )


def test_a_pass_says_what_holds():
    rows = judge_loss(LossGates(max_loss=0.05), HEALTHY, has_adapter=True)
    assert summarize(rows, HEALTHY, LAYERS, adapter="a") == (
        "pass", "the adapter survives; the relative L2 error 0.04 is not above 0.05",
    )  # fmt: skip


def test_an_adapter_without_an_effect_is_ungated():
    loss = LossRow(effect=0.0, relative_l2=0.01, rows=8)
    rows = judge_loss(LossGates(), loss, has_adapter=True)
    verdict, reason = summarize(rows, loss, {}, adapter="a")
    assert verdict == "ungated"
    assert "'a' has no measurable effect" in reason


def test_nan_in_the_quantized_graph_fails_with_and_without_an_adapter():
    loss = LossRow(effect=0.3, rows=8, finite=False)
    for adapter in ("a", None):
        rows = judge_loss(LossGates(), loss, has_adapter=adapter is not None)
        verdict, reason = summarize(rows, loss, {}, adapter=adapter)
        assert (verdict, reason) == ("fail", "the quantized graph returns NaN or infinity")
        assert all(row.verdict == "fail" for row in rows)


def test_without_an_update_the_layers_with_the_largest_errors_are_the_weakest():
    layers = {
        name: LayerLossRow(scheme="int4", block_size=32, relative_error=error)
        for name, error in {"a": 0.1, "b": 0.3, "c": None, "d": 0.2}.items()
    }
    assert weakest_layers(layers, 4) == ["c", "b", "d", "a"]


def test_the_worst_of_some_verdicts():
    assert worst_loss([]) == worst_loss(["ungated"]) == "ungated"
    assert worst_loss(["pass", "ungated"]) == "pass"
    assert worst_loss(["pass", "ambiguous"]) == "ambiguous"
    assert worst_loss(["ambiguous", "fail", "pass"]) == "fail"
