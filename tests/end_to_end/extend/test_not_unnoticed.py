"""Notes on what is easily missed: adapters not verified, verdicts of an adapter that is gone."""

from __future__ import annotations

import pytest

from tests.cli.exports import assert_intact, report, scale_tensor
from tests.cli.running import call, snapshot
from tests.helpers.builds import build


def test_planted_fault_survives_no_verification_of_an_added_adapter(both, alone, capsys) -> None:
    assert call(capsys, "add", alone, "--adapter", f"second={both.second}").code == 0
    scale_tensor(alone, "weights/second.safetensors", 1.01, containing="attention")
    assert call(capsys, "verify", alone, "--base", both.base).code == 5


def test_strict_does_not_take_an_unverified_adapter_for_a_verified_one(both, alone, capsys) -> None:
    added = call(capsys, "add", alone, "--adapter", f"other={both.second}")
    assert added.code == 0, added.err
    assert call(capsys, "verify", alone).code == 0
    strict = call(capsys, "verify", alone, "--strict")
    assert strict.code == 5
    assert "other: unverified" in strict.out


@pytest.mark.parametrize(
    "flags", [("--dataset", "nowhere.jsonl"), ("--adapter", "x=y")], ids=lambda row: row[0]
)
def test_what_only_torch_can_compare_asks_for_the_base(alone, capsys, flags) -> None:
    result = call(capsys, "verify", alone, *flags)
    assert result.code == 2
    assert flags[0] in result.err
    assert "--base" in result.err


def test_adapter_of_another_task_is_not_added(tiny, both, alone, capsys) -> None:
    base = tiny.base("bert", "token-classification")
    foreign = tiny.adapter(base, task="token-classification")
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", f"foreign={foreign}")
    assert result.code == 2
    assert "token-classification" in result.err
    assert snapshot(alone) == before


def test_adapter_with_an_empty_name_is_refused(both, alone, capsys) -> None:
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", "=somewhere")
    assert result.code == 2
    assert "=somewhere" in result.err
    assert snapshot(alone) == before


def test_export_without_an_adapter_says_so(tiny, tmp_path, capsys) -> None:
    result = call(capsys, "export", "--base", tiny.base("bert"), "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert "no adapter" in result.out


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_what_was_found_of_an_adapter_goes_with_it(tiny, tmp_path, capsys, mode) -> None:
    """A verdict on the adapter that had the name before is none on the new one."""
    base = tiny.base("bert")
    one, two, other = (tiny.adapter(base, seed=seed) for seed in (1, 2, 3))
    out = tmp_path / "out"
    build(base, {"one": one, "two": two}, out, mode=mode, verify={"enabled": True},
          latency={"enabled": mode == "merged", "max_ratio": 50})  # fmt: skip

    def known() -> set[str]:
        rows = report(out, "parity")["graphs"]
        return {*rows, *(name for row in rows.values() for name in row.get("adapters") or {})}

    before = known()
    assert {"one", "two"} <= before
    added = call(capsys, "add", out, "--adapter", f"one={other}", "--replace", "--quiet")
    assert added.code == 0, added.err
    assert "one" not in known()
    assert "two" in known()
    if mode == "merged":
        assert set(report(out, "latency")["graphs"]) == {"two"}
    page = (out / "reports" / "report.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| one |"))
    assert "unverified" in line
    assert call(capsys, "remove", out, "two", "--quiet").code == 0
    assert "two" not in known()
    assert "two" not in (out / "reports" / "report.html").read_text()
    if mode == "merged":
        assert_intact(out)
