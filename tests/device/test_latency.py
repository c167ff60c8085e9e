"""Latency on simulated timings: a planted slow-down is caught, equals pass, noise is ambiguous."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from lora_export.device import latency
from lora_export.device.latency import bootstrap_ratio, gate, latency_row, measure_pair


def simulate(
    seed: int, ratio: float, *, rounds: int = 120, noise: float = 0.03, drift: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Times of a machine with noise, outliers, and a drift over the run by a factor."""
    random = np.random.default_rng(seed)
    common = 5.0 * np.linspace(1.0, drift, rounds)

    def one(factor: float) -> np.ndarray:
        values = common * factor * np.exp(noise * random.standard_normal(rounds))
        outliers = random.random(rounds) < 0.05
        return np.where(outliers, values * random.uniform(1.5, 4.0, rounds), values)

    return one(1.0), one(ratio)


def verdicts(ratio: float, **settings) -> list[str]:
    return [
        latency_row(*simulate(seed, ratio, **settings), max_ratio=1.05, seed=0)["verdict"]
        for seed in range(30)
    ]


def test_a_planted_slow_down_of_a_tenth_is_caught():
    assert set(verdicts(1.10)) == {"fail"}


def test_equals_pass():
    assert set(verdicts(1.0)) == {"pass"}


def test_a_faster_graph_passes():
    assert set(verdicts(0.8)) == {"pass"}


def test_at_the_limit_it_is_mostly_ambiguous():
    found = verdicts(1.05)
    assert found.count("ambiguous") > 24


def test_a_noisy_machine_is_ambiguous_not_verified():
    found = verdicts(1.10, noise=0.5, rounds=20)
    assert found.count("ambiguous") > 15
    assert found.count("pass") <= 2  # the interval is right 19 times in 20


@pytest.mark.parametrize("ratio", [1.0, 1.10])
def test_a_drift_of_the_machine_cancels(ratio):
    wanted = "pass" if ratio == 1.0 else "fail"
    assert set(verdicts(ratio, drift=3.0)) == {wanted}


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        base, merged = simulate(seed, 1.07, noise=0.1)
        _, (low, high) = bootstrap_ratio(base, merged, seed=1)
        covered += low <= 1.07 <= high
    assert 180 <= covered <= 200  # 95 % of 200 is 190, give or take three deviations


def test_the_estimate_lies_in_its_interval_and_is_the_median_of_the_ratios():
    base, merged = simulate(3, 1.2)
    ratio, (low, high) = bootstrap_ratio(base, merged, seed=0)
    assert ratio == np.median(merged / base)
    assert low <= ratio <= high
    assert bootstrap_ratio(base, merged, seed=0) == (ratio, (low, high))


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.9, 1.0), "pass"),
        ((0.9, 1.05), "pass"),
        ((0.9, 1.06), "ambiguous"),
        ((1.05, 1.06), "ambiguous"),
        ((1.051, 1.06), "fail"),
        ((2.0, 3.0), "fail"),
    ],
)
def test_the_gate(interval, verdict):
    found, reason = gate(interval, 1.05)
    assert found == verdict
    assert "1.05" in reason


def test_the_row_has_every_figure():
    base, merged = simulate(0, 1.0)
    row = latency_row(base, merged, max_ratio=1.05, seed=0)
    assert row["median_ms"] == np.median(merged)
    assert row["base_median_ms"] == np.median(base)
    assert row["p90_ms"] == np.quantile(merged, 0.9)
    assert row["rounds"] == 120
    assert row["max_ratio"] == 1.05
    assert row["ratio_interval"][0] <= row["ratio"] <= row["ratio_interval"][1]


class Clock:
    """A clock that only the runs advance; the machine slows down as it goes."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[str] = []

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def run(self, name: str, cost_ms: float):
        def call() -> None:
            self.order.append(name)
            self.now_ns += round(cost_ms * 1e6 * (1 + len(self.order) / 100))

        return call


def test_runs_are_timed_each_on_its_own_interleaved_in_random_order(monkeypatch):
    clock = Clock()
    fake = SimpleNamespace(**{**vars(time), "perf_counter_ns": clock.perf_counter_ns})
    monkeypatch.setattr(latency, "time", fake)
    base, merged = measure_pair(clock.run("base", 2.0), clock.run("merged", 3.0), rounds=50, seed=0)
    assert len(base) == len(merged) == 50
    assert len(clock.order) == 2 * (50 + 8)
    measured = np.array(clock.order[16:]).reshape(50, 2)
    assert all(set(pair) == {"base", "merged"} for pair in measured)
    first = (measured[:, 0] == "base").mean()
    assert 0.25 < first < 0.75
    # The drift is in both; the order of a pair makes the ratio waver, its median does not.
    assert base[-1] > 1.5 * base[0]
    assert np.median(merged / base) == pytest.approx(1.5, rel=0.02)


def test_the_order_is_seeded():
    orders = []
    for seed in (0, 0, 1):
        clock = Clock()
        measure_pair(clock.run("base", 1), clock.run("merged", 1), rounds=20, seed=seed)
        orders.append(clock.order)
    assert orders[0] == orders[1] != orders[2]
