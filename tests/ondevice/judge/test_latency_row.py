"""A row of ``reports/latency.json``; the statistics have tests of their own."""

from __future__ import annotations

import numpy as np

from lora_export.ondevice.judge.latency_row import latency_row, measure_pair
from tests.helpers.timings import simulated


def test_the_row_has_every_figure():
    base, merged = simulated("spikes", 120, seed=0)
    row = latency_row(base, merged, max_ratio=1.5, seed=0)
    assert row["verdict"] == "pass"
    assert row["median_ms"] == np.median(merged)
    assert row["base_median_ms"] == np.median(base)
    assert row["p90_ms"] == np.quantile(merged, 0.9)
    assert row["ratio"] == np.median(merged / base)
    assert row["rounds"] == 120
    assert row["max_ratio"] == 1.5
    assert row["ratio_interval"][0] <= row["ratio"] <= row["ratio_interval"][1]
    assert "rounds_needed" not in row


def test_a_slow_down_fails_and_an_open_row_says_how_many_rounds_it_needs():
    slow = latency_row(*simulated("white", 120, seed=0, ratio=1.1), max_ratio=1.05, seed=0)
    assert slow["verdict"] == "fail"
    open_row = latency_row(*simulated("white", 20, seed=2, ratio=1.04), max_ratio=1.05, seed=0)
    assert open_row["verdict"] == "ambiguous"
    assert open_row["rounds_needed"] > 20


def test_a_pair_is_timed_after_a_warm_up():
    calls: list[str] = []
    base, merged = measure_pair(
        lambda: calls.append("base"), lambda: calls.append("merged"), rounds=7, seed=0
    )
    assert len(base) == len(merged) == 7
    assert calls.count("base") == calls.count("merged") >= 7 + 8
