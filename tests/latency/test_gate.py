"""The gate with a file of earlier ratios: what is worth keeping, what settles it, what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_export.core.errors import InputError, UnsupportedError
from lora_export.latency.gate import Baseline, Judge, is_wide, parse_baseline
from lora_export.latency.grid import paired
from lora_export.latency.points import Point
from lora_export.ondevice.judge.ratios import look_rounds
from tests.helpers.timings import LOADS, recorded, simulated

POINT = Point("forward", 1, 8)
PAIRS = [("new", "base")]
LIMIT, ROUNDS, MOST = 1.05, 50, 6400


def named(times, rounds=None):
    return {"base": times[0, :rounds], "new": times[1, :rounds]}


def stored(ratio: float, low: float, high: float) -> Baseline:
    row = {"cell": POINT.name, "subject": "new", "over": "base", "ratio": ratio,
           "interval": (low, high)}  # fmt: skip
    return Baseline.model_validate({"machine": {}, "packages": {}, "rows": [row]})


def kept(times) -> Baseline:
    """Keep a ratio as `bench --update-baseline` does."""
    for stop in look_rounds(ROUNDS, MOST):
        seen = named(times, stop)
        if not is_wide(seen, PAIRS, max_ratio=LIMIT, seed=0):
            break
    found = paired(seen, "new", "base", seed=0)
    return stored(found.estimate, found.low, found.high)


def verdict(times, baseline: Baseline) -> str:
    """Judge a later run as `bench --baseline` does."""
    judge = Judge(LIMIT, PAIRS, against="the file", stored=baseline, seed=0)
    stops = look_rounds(ROUNDS, MOST)
    for stop in stops:
        if not judge.is_open(POINT, named(times, stop), len(stops)):
            break
    return judge.gate().verdict


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("ratio", "wanted"), [(1.0, "pass"), (1.1, "fail")])
def test_a_later_run_on_a_loaded_machine_is_judged_rightly_by_what_was_kept(load, ratio, wanted):
    found = [
        verdict(
            recorded(load, MOST, seed=seed, ratio=ratio),
            kept(recorded(load, MOST, seed=900 + seed)),
        )
        for seed in range(10)
    ]
    assert found.count(wanted) >= 8, found  # under bursts, 6400 rounds do not always settle it
    assert not {"pass", "fail"} - {wanted} & set(found)


def test_a_ratio_is_kept_when_its_error_takes_a_quarter_of_what_the_limit_allows():
    times = simulated("white", 6400, seed=0)
    assert is_wide(named(times, 50), PAIRS, max_ratio=1.05, seed=0)
    assert not is_wide(named(times), PAIRS, max_ratio=1.05, seed=0)
    assert not is_wide(named(times, 50), PAIRS, max_ratio=1.5, seed=0)
    assert not is_wide(named(times, 50), [], max_ratio=1.05, seed=0)


def test_rounds_do_not_settle_what_the_baseline_leaves_open():
    times = 2.0 + 0.001 * np.random.default_rng(0).standard_normal((2, 400))
    judge = Judge(LIMIT, PAIRS, against="the file", stored=stored(1.0, 0.94, 1.06), seed=0)
    judge.is_open(POINT, named(times), 1)
    (row,) = judge.gate().rows
    assert (row.verdict, row.rounds_needed) == ("ambiguous", None)
    assert "the baseline itself is not known well enough" in row.reason
    assert "--update-baseline" in row.reason


def test_the_number_of_rounds_counts_what_they_narrow():
    """A tenth of the interval is the baseline's: what is left needs so many rounds, and no less."""
    times = simulated("white", 40_000, seed=2)
    baseline = stored(1.0, 1 / 1.01, 1.01)
    judge = Judge(LIMIT, PAIRS, against="the file", stored=baseline, seed=0)
    judge.is_open(POINT, named(times, 10), 1)
    (row,) = judge.gate().rows
    assert row.verdict == "ambiguous"
    assert row.rounds_needed is not None
    judge.is_open(POINT, named(times, 4 * row.rounds_needed), 1)
    assert judge.gate().verdict == "pass"


def test_a_subject_that_the_baseline_has_not_is_unverified_and_named():
    times = named(simulated("white", 400, seed=0)) | {"further": np.ones(400)}
    judge = Judge(LIMIT, PAIRS, against="old", lacking=["further"], seed=0)
    judge.is_open(POINT, times, 1)
    assert [(row.subject, row.verdict) for row in judge.gate().rows] == [
        ("new", "pass"), ("further", "unverified"),
    ]  # fmt: skip
    assert judge.gate().verdict == "unverified"


def document(**changes) -> bytes:
    row = {"cell": "forward 1×8", "subject": "ort-cpu:one", "over": "ort-cpu:base",
           "ratio": 1.0, "interval": [0.9, 1.1]}  # fmt: skip
    rows = [{**row, **each} for each in changes.pop("rows", [{}])]
    table = {"format_version": 1, "machine": {}, "packages": {}, "rows": rows}
    return json.dumps({**table, **changes}).encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (document(rows=[{"ratio": float("inf"), "interval": [1.0, float("inf")]}]), "outside"),
        (document(rows=[{"ratio": float("nan")}]), "outside"),
        (document(rows=[{"interval": [1.0, float("inf")]}]), "outside"),
        (document(rows=[{"ratio": 1e-200, "interval": [1e-300, 1e-100]}]), "outside"),
        (document(rows=[{"interval": [1.1, 0.9]}]), "outside"),
        (document(rows=[{"ratio": 0.0, "interval": [0.0, 1.0]}]), "outside"),
        (document(rows=[{"ratio": "fast"}]), "rows.0.ratio"),
        (document(rows=[{}, {}]), "twice"),
        (document(more=1), "more"),
        (document(machine=[]), "machine"),
        (b"", "JSON"),
        (b"\xff\xfe", "the document"),
        (b"<<<<<<< HEAD\n{}", "JSON"),
    ],
)
def test_a_damaged_baseline_is_an_input_error_that_says_how_to_write_it(text, says):
    with pytest.raises(InputError, match=r"latency\.json") as caught:
        parse_baseline(text, "latency.json")
    assert says in caught.value.message
    assert "--update-baseline" in (caught.value.hint or "")


def test_a_baseline_of_a_newer_version_asks_for_that_version_whatever_else_it_holds():
    with pytest.raises(UnsupportedError, match="format_version 2"):
        parse_baseline(document(format_version=2, cells=[{"new": True}]), "latency.json")
    assert parse_baseline(document(), "latency.json").rows[0].ratio == 1.0
