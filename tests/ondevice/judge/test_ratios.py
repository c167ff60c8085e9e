"""Paired ratios on recorded and simulated timings: equals pass, a slow-down is caught."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lora_export.ondevice.judge.ratios import (
    Ratio,
    block_length,
    bootstrap_ratio,
    gate,
    look_confidence,
    look_rounds,
    rounds_to_settle,
)
from tests.helpers.slow import but_the_first
from tests.helpers.timings import LOADS, NOISES, recorded, simulated

LIMIT = 1.05
ROUNDS, MOST = 50, 6400
TRIALS = {"steady": 100, "shared": 20, "bursts": 20}  # a hundred of each: bench/gate.py


def decide(times: np.ndarray) -> tuple[str, int]:
    """Judge times as `bench` does: look, and go on where it is open; return also the rounds."""
    stops = look_rounds(ROUNDS, times.shape[1])
    confidence = look_confidence(len(stops))
    for stop in stops:
        seen = times[:, :stop]
        _, interval = bootstrap_ratio(seen[0], seen[1], seed=0, confidence=confidence)
        verdict, _ = gate(interval, LIMIT)
        if verdict != "ambiguous":
            return verdict, stop
    return "ambiguous", stops[-1]


def verdicts(make, kind: str, ratio: float, trials: int) -> list[str]:
    return [decide(make(kind, MOST, seed=seed, ratio=ratio))[0] for seed in range(trials)]


@pytest.mark.parametrize("load", but_the_first(LOADS))
@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, "pass"), (1.1, "fail")])
def test_on_a_loaded_machine_the_right_verdict_is_found(load, ratio, wanted):
    """Timings that were recorded on two loaded cores: 95 of 100 trials."""
    found = verdicts(recorded, load, ratio, TRIALS[load])
    assert found.count(wanted) >= 0.95 * TRIALS[load]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, "pass"), (1.1, "fail"), (0.8, "pass")])
def test_with_every_kind_of_noise_the_right_verdict_is_found(noise, ratio, wanted):
    found = verdicts(simulated, noise, ratio, 20)
    assert found.count(wanted) >= 19


@pytest.mark.parametrize("ratio", [1.0, 1.1])
def test_a_quiet_machine_needs_the_first_look_only(ratio):
    rounds = [decide(simulated("white", MOST, seed=seed, ratio=ratio))[1] for seed in range(20)]
    assert np.median(rounds) == ROUNDS


def test_at_the_limit_hardly_any_trial_fails_or_passes():
    """The looks together keep the confidence: a wrong verdict on either side in 5 % at most."""
    found = [decide(simulated("white", 400, seed=seed, ratio=LIMIT))[0] for seed in range(100)]
    assert found.count("fail") <= 5
    assert found.count("pass") <= 5


def test_one_look_after_another_without_their_share_errs_more_often():
    """The purpose of `look_confidence`: without it, trials at the limit are decided too often."""
    wrong = 0
    for seed in range(100):
        times = simulated("white", 400, seed=seed, ratio=LIMIT)
        for stop in look_rounds(ROUNDS, 400):
            _, interval = bootstrap_ratio(times[0, :stop], times[1, :stop], seed=0)
            if gate(interval, LIMIT)[0] != "ambiguous":
                wrong += 1
                break
    assert wrong > 10


def test_twenty_rounds_on_a_loaded_machine_are_ambiguous_not_verified():
    found = []
    for seed in range(40):
        times = recorded("steady", 20, seed=seed, ratio=1.1)
        _, interval = bootstrap_ratio(times[0], times[1], seed=0)
        found.append(gate(interval, LIMIT)[0])
    assert found.count("ambiguous") > 25
    assert found.count("pass") <= 2


@pytest.mark.parametrize(("noise", "least"), [("white", 0.90), ("spikes", 0.90),
                                              ("bursts", 0.90), ("correlated", 0.85)])  # fmt: skip
def test_the_interval_covers_the_truth_about_as_often_as_it_says(noise, least):
    covered = 0
    for seed in range(200):
        times = simulated(noise, 200, seed=seed, ratio=1.07)
        _, (low, high) = bootstrap_ratio(times[0], times[1], seed=1)
        covered += low <= 1.07 <= high
    assert least * 200 <= covered <= 199


def test_blocks_cover_correlated_noise_that_single_rounds_do_not(monkeypatch):
    """The reason for blocks: drawn one by one, correlated rounds seem to know more than they do."""

    def covered() -> int:
        count = 0
        for seed in range(150):
            times = simulated("correlated", 200, seed=seed)
            _, (low, high) = bootstrap_ratio(times[0], times[1], seed=1)
            count += low <= 1.0 <= high
        return count

    with_blocks = covered()
    monkeypatch.setattr("lora_export.ondevice.judge.ratios.block_length", lambda _rounds: 1)
    assert covered() < with_blocks - 5


def test_recorded_rounds_hardly_depend_on_one_another():
    """Why blocks may be short: pairing leaves no correlation to speak of."""
    for load in LOADS:
        times = recorded(load, 2000, seed=0)
        signs = np.sign(np.log(times[1] / times[0]))
        for lag in (1, 2, 5):
            assert abs(np.mean(signs[lag:] * signs[:-lag])) < 0.1


def test_the_estimate_is_the_median_of_the_ratios_and_lies_in_its_interval():
    for rounds in (5, 50, 51):
        base, other = simulated("white", rounds, seed=3, ratio=1.2)
        ratio, (low, high) = bootstrap_ratio(base, other, seed=0)
        assert ratio == np.median(other / base)
        assert low <= ratio <= high
        assert bootstrap_ratio(base, other, seed=0) == (ratio, (low, high))


def test_with_blocks_of_one_round_it_is_the_bootstrap_of_the_textbook(monkeypatch):
    """Its medians have an exact distribution: the k-th smallest of n is reached by Bin(n, k / n).

    Of 2,000 resamples, the share below a true 2.5 % quantile is known to 4 sigma = 1.4 points.
    """
    monkeypatch.setattr("lora_export.ondevice.judge.ratios.block_length", lambda _rounds: 1)
    base, other = simulated("spikes", 61, seed=1)
    ordered = np.sort(other / base)
    at_most = stats.binom.sf(30, 61, np.arange(62) / 61)  # P(median <= the k-th smallest)
    for seed in range(5):
        _, interval = bootstrap_ratio(base, other, seed=seed)
        for found, tail in zip(interval, (0.025, 0.975), strict=True):
            rank = int(np.searchsorted(ordered, found * (1 + 1e-12)))
            assert at_most[rank - 1] - 0.014 < tail < at_most[rank] + 0.014


def test_every_round_is_drawn_as_often_as_the_others(monkeypatch):
    """A block that begins at the last round goes on at the first: all 7^3 draws, enumerated."""
    monkeypatch.setattr("lora_export.ondevice.judge.ratios.block_length", lambda _rounds: 3)
    ratios = np.array([9.0, 5.0, 2.0, 1.0, 3.0, 6.0, 8.0])

    def interval_of(starts: range) -> list[float]:
        medians = [
            np.median([ratios[(start + step) % 7] for start in draw for step in range(3)][:7])
            for draw in itertools.product(starts, repeat=3)
        ]
        return [float(each) for each in np.quantile(medians, [0.25, 0.75])]

    wanted = interval_of(range(7))
    assert wanted != interval_of(range(5))  # blocks that end at the last round
    for seed in range(5):
        _, found = bootstrap_ratio(np.ones(7), ratios, seed=seed, confidence=0.5)
        assert list(found) == wanted


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
    found, reason = gate(interval, LIMIT)
    assert found == verdict
    assert "1.05" in reason


def test_the_number_of_rounds_that_would_settle_it_does():
    """Ambiguous trials are gone on with for as long as they were told, with a tenth to spare."""
    settled = told = 0
    for seed in range(60):
        times = recorded("steady", 20000, seed=seed, ratio=1.0)
        _, interval = bootstrap_ratio(times[0, :100], times[1, :100], seed=0)
        estimate = float(np.median(times[1, :100] / times[0, :100]))
        needed = rounds_to_settle(estimate, interval, LIMIT, 100)
        if gate(interval, LIMIT)[0] != "ambiguous" or needed is None or needed > 18000:
            continue
        told += 1
        enough = times[:, : needed + needed // 10]
        _, later = bootstrap_ratio(enough[0], enough[1], seed=0)
        settled += gate(later, LIMIT)[0] == "pass"
    assert told > 20
    assert settled > told / 2  # an estimate from a noisy start: half of them, not all


@pytest.mark.parametrize("interval", [(math.nan, math.nan), (0.9, math.nan), (0.9, math.inf)])
def test_what_is_no_number_never_passes(interval):
    assert gate(interval, LIMIT)[0] == "ambiguous"
    assert rounds_to_settle(1.0, interval, LIMIT, 50) is None


def test_rounds_narrow_only_what_they_measure():
    """Of a half of 0.1 that faces a limit 0.0488 away: with f, n (h² − f²) / (d² − f²)."""
    interval, distance = (math.exp(-0.1), math.exp(0.1)), math.log(LIMIT)
    for fixed in (0.0, 0.02, 0.04):
        expected = math.ceil(100 * (0.1**2 - fixed**2) / (distance**2 - fixed**2))
        assert rounds_to_settle(1.0, interval, LIMIT, 100, fixed=fixed) == expected
    assert rounds_to_settle(1.0, interval, LIMIT, 100, fixed=distance) is None


def test_what_cannot_be_settled_has_no_number():
    assert rounds_to_settle(LIMIT, (1.0, 1.1), LIMIT, 50) is None
    assert rounds_to_settle(1.0499999, (1.0, 1.1), LIMIT, 50) is None


def test_looks_end_with_the_most_rounds_and_share_the_error():
    assert look_rounds(50, 3000) == [50, 100, 200, 400, 800, 1600, 3000]
    assert math.isclose(1 - look_confidence(7), 0.05 / 7)
    assert look_confidence(1) == 0.95


def test_a_ratio_of_ratios_adds_its_errors_as_squares():
    one, two = Ratio(1.2, 1.1, 1.3), Ratio(1.1, 1.05, 1.15)
    found = one.over(two)
    assert found.estimate == pytest.approx(1.2 / 1.1)
    below = math.hypot(math.log(1.2 / 1.1), math.log(1.15 / 1.1))
    assert found.low == pytest.approx(found.estimate / math.exp(below))
    above = math.hypot(math.log(1.3 / 1.2), math.log(1.1 / 1.05))
    assert found.high == pytest.approx(found.estimate * math.exp(above))


def test_blocks_grow_slowly():
    assert [block_length(rounds) for rounds in (1, 8, 50, 800)] == [1, 2, 4, 10]
