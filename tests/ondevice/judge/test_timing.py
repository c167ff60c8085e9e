"""The measuring loop, on a clock that only the runs advance."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from lora_export.ondevice.judge import timing as core
from lora_export.ondevice.judge.timing import Interleaved


class Clock:
    """A clock that only the runs advance; the machine slows down as it goes."""

    def __init__(self, monkeypatch, *, slowing: float = 0.01) -> None:
        self.now_ns, self.slowing = 0, slowing
        self.order: list[str] = []
        fake = SimpleNamespace(
            **{**vars(time), "perf_counter_ns": lambda: self.now_ns,
               "perf_counter": lambda: self.now_ns / 1e9}
        )  # fmt: skip
        monkeypatch.setattr(core, "time", fake)

    def run(self, name: str, cost_ms: float):
        def call() -> None:
            self.order.append(name)
            self.now_ns += round(cost_ms * 1e6 * (1 + len(self.order) * self.slowing))

        return call


def test_runs_are_timed_each_on_its_own_interleaved_in_random_order(monkeypatch):
    clock = Clock(monkeypatch)
    measurement = Interleaved(
        {"base": clock.run("base", 2), "other": clock.run("other", 3)}, seed=0
    )
    measurement.extend(20)
    measurement.extend(30)
    times = measurement.times_ms
    assert measurement.rounds == len(times["base"]) == len(times["other"]) == 50
    rounds = np.array(clock.order).reshape(50, 2)
    assert all(set(pair) == {"base", "other"} for pair in rounds)
    assert 0.25 < (rounds[:, 0] == "base").mean() < 0.75
    # The drift is in both; the order of a pair makes the ratio waver, its median does not.
    assert times["base"][-1] > 1.5 * times["base"][0]
    assert np.median(times["other"] / times["base"]) == pytest.approx(1.5, rel=0.02)


def test_no_round_begins_after_a_moment(monkeypatch):
    clock = Clock(monkeypatch, slowing=0.0)
    measurement = Interleaved({"a": clock.run("a", 4), "b": clock.run("b", 6)}, seed=0)
    measurement.extend(3, until_s=0.0155)
    assert measurement.rounds == 2  # begun at 0 and 10 ms; the next one would at 20
    measurement.extend(3, until_s=0.0155)
    assert measurement.rounds == 2
    measurement.extend(3)
    assert measurement.rounds == 5


def test_the_order_is_seeded(monkeypatch):
    orders = []
    for seed in (0, 0, 1):
        clock = Clock(monkeypatch)
        Interleaved({"a": clock.run("a", 1), "b": clock.run("b", 1)}, seed=seed).extend(20)
        orders.append(clock.order)
    assert orders[0] == orders[1] != orders[2]


def test_the_warm_up_ends_when_the_times_have_settled(monkeypatch):
    clock = Clock(monkeypatch, slowing=0.0)
    warm = Interleaved({"a": clock.run("a", 1), "b": clock.run("b", 2)}, seed=0).warm_up()
    assert (warm.runs, warm.stable) == (8, True)
    assert len(clock.order) == 16


def test_the_warm_up_goes_on_while_runs_become_faster(monkeypatch):
    clock = Clock(monkeypatch, slowing=0.0)
    left = [20]

    def compiled() -> None:
        left[0] = max(0, left[0] - 1)
        clock.now_ns += round(1e6 * (1 + left[0]))

    warm = Interleaved({"a": clock.run("a", 1), "b": compiled}, seed=0).warm_up()
    assert warm.stable
    assert warm.runs >= 24
    assert left == [0]


def test_the_warm_up_of_what_never_settles_has_an_end_and_says_so(monkeypatch):
    clock = Clock(monkeypatch, slowing=0.1)
    measurement = Interleaved({"a": clock.run("a", 1)}, seed=0)
    warm = measurement.warm_up(windows=3)
    assert (warm.runs, warm.stable) == (12, False)
    assert measurement.rounds == 0  # nothing of it counts


def test_the_warm_up_of_slow_runs_ends_in_time(monkeypatch):
    clock = Clock(monkeypatch, slowing=0.1)
    warm = Interleaved({"a": clock.run("a", 9000)}, seed=0).warm_up(limit_s=20)
    assert (warm.runs, warm.stable) == (4, False)
