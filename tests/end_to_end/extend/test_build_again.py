"""A build into an export that exists: what it keeps, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.exports import assert_intact, manifest_of, report
from tests.cli.running import call, snapshot
from tests.end_to_end.extend.example import TASK, Both, files_of

if TYPE_CHECKING:
    from pathlib import Path


def test_build_into_an_existing_export_keeps_its_adapters(both, alone, capsys) -> None:
    weights = files_of(alone)["weights/first.safetensors"]
    base_file = (alone / "weights" / "base.safetensors").stat()
    result = call(capsys, "merge-and-build", "--base", both.base, "--task", TASK, "--no-verify",
                  "--adapter", f"second={both.second}", "--out", alone)  # fmt: skip
    assert result.code == 0, result.err
    assert set(manifest_of(alone)["adapters"]) == {"first", "second"}
    assert files_of(alone)["weights/first.safetensors"] == weights
    assert (alone / "weights" / "base.safetensors").stat().st_ino == base_file.st_ino
    assert files_of(alone) == files_of(both.together)
    assert_intact(alone)


def test_verified_build_into_an_export_keeps_the_rows_of_the_others(both, alone, capsys) -> None:
    """The manifest goes on calling `first` verified: the report has to go on saying why."""
    assert call(capsys, "verify", alone, "--base", both.base).code == 0
    result = call(capsys, "merge-and-build", "--base", both.base, "--task", TASK,
                  "--no-latency", "--adapter", f"second={both.second}", "--out", alone)  # fmt: skip
    assert result.code == 0, result.err
    graphs = manifest_of(alone)["graphs"]
    assert {name: graph["verification"] for name, graph in graphs.items()} == {
        "base": "pass", "first": "pass", "second": "pass",
    }  # fmt: skip
    assert set(report(alone, "parity")["graphs"]) == {"base", "first", "second"}
    assert_intact(alone)


def test_rebuild_of_the_same_adapter_replaces_it(both: Both, alone: Path, capsys) -> None:
    result = call(capsys, "export", "--base", both.base, "--task", TASK,
                  "--adapter", f"first={both.first}", "--out", alone)  # fmt: skip
    assert result.code == 0, result.err
    assert files_of(alone) == files_of(both.alone)


def test_another_base_is_refused_and_the_export_untouched(tiny, both, alone, capsys) -> None:
    other = tiny.base("bert", TASK, seed=5)
    before = snapshot(alone)
    result = call(capsys, "export", "--base", other, "--task", TASK,
                  "--adapter", f"second={both.second}", "--out", alone)  # fmt: skip
    assert result.code == 3
    assert "another base" in result.message
    assert snapshot(alone) == before
    result = call(capsys, "add", alone, "--adapter", f"b={both.second}", "--base", other)
    assert result.code == 3
    assert "fingerprint" in result.message
    assert snapshot(alone) == before


def test_damaged_base_weights_are_not_merged_from(both: Both, alone: Path, capsys) -> None:
    """The base file lost a tensor's worth of bytes: `add` must not build on it."""
    path = alone / "weights" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = call(capsys, "add", alone, "--adapter", f"second={both.second}")
    assert result.code == 3
    assert "base.safetensors" in result.message
    assert set(manifest_of(alone)["adapters"]) == {"first"}


HOSTILE = {
    "newer": (4, "99", lambda m: {**m, "format_version": 99}),
    "incomplete": (3, "graphs", lambda m: {k: v for k, v in m.items() if k != "graphs"}),
    "climbing": (3, "../../x", lambda m: {**m, "files": {**m["files"], "../../x": "0" * 64}}),
    "absolute": (3, "/etc/passwd", lambda m: {**m, "files": {"/etc/passwd": "0" * 64}}),
    "unknown key": (3, "surprise", lambda m: {**m, "surprise": 1}),
    "no table": (3, "damaged", lambda m: [m]),
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("verb", ["add", "verify", "remove"])
def test_damaged_or_hostile_manifest(both: Both, alone: Path, capsys, verb, fault) -> None:
    code, word, edit = HOSTILE[fault]
    (alone / "lora_export.json").write_text(json.dumps(edit(manifest_of(alone))))
    before = snapshot(alone)
    rest = {"add": ("--adapter", f"b={both.second}"), "verify": (), "remove": ("first",)}[verb]
    result = call(capsys, verb, alone, *rest)
    assert result.code == code
    assert word in result.message
    assert snapshot(alone) == before


def test_export_directory_that_is_none(tmp_path: Path, both: Both, capsys) -> None:
    for arguments in (
        ("verify", tmp_path),
        ("remove", tmp_path, "first"),
        ("add", tmp_path, "--adapter", f"a={both.first}"),
        ("verify", tmp_path / "nowhere"),
    ):
        result = call(capsys, *arguments)
        assert result.code == 3, arguments
        assert "not an export directory" in result.message
    assert list(tmp_path.iterdir()) == []
