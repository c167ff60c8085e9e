"""Gates: the ratio of the latency, an ambiguous one, an adapter without effect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.cli.exports import (
    assert_intact,
    report,
)
from tests.cli.running import Result, call
from tests.end_to_end.merge_and_build.example import TASK, Built, write_recipe

if TYPE_CHECKING:
    from pathlib import Path


def gate(built: Built, tmp_path: Path, capsys, *flags: object) -> tuple[Path, Result]:
    out = tmp_path / "out"
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: first, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\noutput: out\nverify: {{enabled: false}}\n"
        "latency: {rounds: 10, length: 8}\n",
    )
    return out, call(capsys, "merge-and-build", recipe, *flags)


def test_latency_gate_fails_with_its_own_code_and_keeps_the_export(built, tmp_path, capsys):
    out, result = gate(built, tmp_path, capsys, "--max-ratio", 0.01)
    assert result.code == 6, result.err
    assert_intact(out)
    row = report(out, "latency")["graphs"]["first"]
    assert row["verdict"] == "fail"
    assert row["ratio_interval"][0] > 0.01
    assert "latency of first: fail" in result.out


@pytest.fixture
def noisy_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every measured time a draw from one wide distribution: no ratio can be told from 1."""
    random = np.random.default_rng(0)
    now = 0

    def tick() -> int:
        nonlocal now
        now += int(random.lognormal(14, 1.0))
        return now

    monkeypatch.setattr(time, "perf_counter_ns", tick)


@pytest.mark.usefixtures("noisy_clock")
@pytest.mark.parametrize("flags", [(), ("--strict",)], ids=["", "strict"])
def test_ambiguous_latency_is_said_and_strict_fails_it(built, tmp_path, capsys, flags) -> None:
    out, result = gate(built, tmp_path, capsys, "--max-ratio", 1.0, *flags)
    assert result.code == (6 if flags else 0), result.out
    row = report(out, "latency")["graphs"]["first"]
    assert row["verdict"] == "ambiguous"
    assert row["ratio_interval"][0] < 1.0 < row["ratio_interval"][1]
    assert "latency of first: ambiguous" in result.out
    assert "verified" not in result.out.replace("unverified", "")


def test_adapter_without_effect_fails_unless_allowed(built: Built, tiny, tmp_path, capsys) -> None:
    idle = tiny.adapter(built.base, strength=0.0, seed=9, modules_to_save=[])
    arguments = ("merge-and-build", "--base", built.base, "--adapter", f"idle={idle}",
                 "--task", TASK, "--no-latency", "--json")  # fmt: skip
    failed = call(capsys, *arguments, "--out", tmp_path / "a")
    assert failed.code == 5, failed.err
    row = failed.document["reports"]["parity"]["graphs"]["idle"]
    assert row["verdict"] == "fail"
    assert "effect" in row["reason"]
    allowed = call(capsys, *arguments, "--out", tmp_path / "b", "--allow-no-effect")
    assert allowed.code == 0, allowed.err
