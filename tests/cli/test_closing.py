"""The first and last lines of results: the verdict, the report, the next command."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from lora_export.cli.closing import headline, next_words
from lora_export.commands.outcome import Outcome
from lora_export.core.manifest import read_manifest
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

TASK = ("--task", "text-classification")


@pytest.fixture(scope="module")
def base(tiny) -> Path:
    return tiny.base("bert", "text-classification")


@pytest.fixture(scope="module")
def adapter(tiny, base: Path) -> Path:
    return tiny.adapter(base)


@pytest.fixture(scope="module")
def bare(base: Path, tmp_path_factory) -> Path:
    """An export of the base alone."""
    from lora_export.cli import run

    out = tmp_path_factory.mktemp("closing") / "out"
    assert run(["export", "--base", str(base), "-o", str(out), *TASK, "--quiet"]) == 0
    return out


def test_without_an_adapter_the_base_alone_is_exported_and_it_says_so(
    base: Path, tmp_path: Path, capsys
) -> None:
    result = call(capsys, "export", "--base", base, "-o", tmp_path / "out", *TASK)
    assert "no adapter is given: the base alone is exported\n" in result.err
    first, *_, last = result.out.splitlines()
    assert first == f"{tmp_path / 'out'}: unverified (the base); graph checked; base unverified"
    assert last == f"next:   lora-export verify {tmp_path / 'out'} --base {base}"


def test_after_add_the_next_command_verifies_and_then_it_passes(
    bare: Path, base: Path, adapter: Path, tmp_path: Path, capsys
) -> None:
    added = call(capsys, "add", bare, "--adapter", f"mine={adapter}").out.splitlines()
    words = "graph checked; adapter unverified"
    assert added[0] == f"{bare}: unverified (the base, mine); {words}"
    command = added[-1].removeprefix("next:   lora-export ")
    verified = call(capsys, *shlex.split(command))
    assert verified.code == 0
    assert verified.out.startswith(f"{bare}: pass (the base, mine)\n")
    assert f"\nreport: {bare}/reports/report.html\nnext:   lora-export " in verified.out
    document = call(capsys, "verify", bare, "--json").document
    assert list(document)[:5] == ["verdict", "deployable", "output", "report", "next"]
    assert document["verdict"] == "pass"
    assert document["deployable"] == ["base", "mine"]
    assert document["report"] == f"{bare}/reports/report.html"


def test_a_base_whose_head_only_adapters_bring_is_not_in_the_verdict(
    tiny, tmp_path: Path, capsys
) -> None:
    headless = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(tiny.base("bert", "text-classification"))
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", headless, "--adapter", f"mine={adapter}",
                  *TASK, "-o", out, "--no-latency")  # fmt: skip
    assert result.code == 0
    assert result.out.startswith(f"{out}: pass (mine)\n")
    assert "parity of base: not applicable" in result.out


def test_a_failure_is_in_the_headline_and_the_report_is_next(bare: Path) -> None:
    manifest = read_manifest(bare)
    graphs = {
        name: record.model_copy(update={"verification": "fail"})
        for name, record in manifest.graphs.items()
    }
    outcome = Outcome(bare, manifest.model_copy(update={"graphs": graphs}))
    assert headline(outcome).startswith(f"{bare}: fail (the base")
    assert next_words(outcome) == ["lora-export", "report", bare, "--open"]
