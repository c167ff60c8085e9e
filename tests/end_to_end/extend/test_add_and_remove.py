"""``add`` and ``remove``: the rest stays, and torch is absent."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.cli.exports import assert_intact, manifest_of, report
from tests.cli.running import REPOSITORY, call, command, snapshot, stagings
from tests.end_to_end.extend.example import LIGHT, Both, files_of

if TYPE_CHECKING:
    from pathlib import Path


def test_add_without_torch_writes_the_bytes_that_the_build_writes(both: Both, alone: Path) -> None:
    result = command("add", alone, "--adapter", f"second={both.second}", "--json", without=LIGHT)
    assert result.code == 0, result.err
    assert set(result.document["adapters"]) == {"first", "second"}
    assert files_of(alone) == files_of(both.together)
    assert manifest_of(alone) == manifest_of(both.together)
    assert_intact(alone)
    assert stagings(alone, alone.parent) == []


def test_added_adapter_is_verified_later(both: Both, alone: Path, capsys) -> None:
    added = call(capsys, "add", alone, "--adapter", f"second={both.second}")
    assert added.code == 0, added.err
    assert manifest_of(alone)["graphs"]["second"]["verification"] == "unverified"
    verified = call(capsys, "verify", alone, "--base", both.base)
    assert verified.code == 0, verified.out
    assert manifest_of(alone)["graphs"]["second"]["verification"] == "pass"
    assert_intact(alone)


def test_several_adapters_at_once(both: Both, alone: Path, capsys) -> None:
    result = call(
        capsys, "add", alone, "--adapter", f"b={both.second}", "--adapter", f"c={both.first}"
    )
    assert result.code == 0, result.err
    assert set(manifest_of(alone)["adapters"]) == {"first", "b", "c"}
    assert_intact(alone)


def test_name_is_that_of_the_folder_where_none_is_given(both, alone, tmp_path, capsys) -> None:
    shutil.copytree(both.second, tmp_path / "my-adapter")
    result = call(capsys, "add", alone, "--adapter", tmp_path / "my-adapter")
    assert result.code == 0, result.err
    assert "my-adapter" in manifest_of(alone)["adapters"]


def test_two_adds_at_once_both_arrive(both: Both, alone: Path) -> None:
    commands = [
        [sys.executable, "-m", "lora_export", "add", str(alone), "--adapter", f"n{i}={source}"]
        for i, source in enumerate((both.first, both.second, both.first))
    ]
    running = [subprocess.Popen(each, cwd=REPOSITORY) for each in commands]
    assert [each.wait(120) for each in running] == [0, 0, 0]
    assert set(manifest_of(alone)["adapters"]) == {"first", "n0", "n1", "n2"}
    assert_intact(alone)
    assert stagings(alone) == []


def test_taken_name_is_refused_and_replaced_on_request(both: Both, alone: Path, capsys) -> None:
    before = snapshot(alone)
    refused = call(capsys, "add", alone, "--adapter", f"first={both.second}")
    assert refused.code == 3
    assert "'first'" in refused.message
    assert "--replace" in refused.message
    assert snapshot(alone) == before
    replaced = call(capsys, "add", alone, "--adapter", f"first={both.second}", "--replace")
    assert replaced.code == 0, replaced.err
    expected = files_of(both.together)["weights/second.safetensors"]
    assert len(files_of(alone)["weights/first.safetensors"]) in range(
        len(expected) - 64, len(expected) + 65
    )
    assert files_of(alone)["weights/first.safetensors"] != before["weights/first.safetensors"]
    assert manifest_of(alone)["adapters"]["first"]["rank"] == 2
    assert_intact(alone)


def test_first_refusal_of_several_leaves_the_export_as_it_was(both, alone, tmp_path, capsys):
    """`add` of a good and a bad adapter: the message names the bad one, and nothing is added."""
    shutil.copytree(both.second, tmp_path / "bad")
    (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"")
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", f"good={both.second}",
                  "--adapter", f"bad={tmp_path / 'bad'}")  # fmt: skip
    assert result.code == 3
    assert snapshot(alone) == before


def test_a_damaged_value_found_late_leaves_the_export_as_it_was(both, alone, tmp_path, capsys):
    """As above, where the fault (NaN) shows only while the second adapter is written."""
    from tests.end_to_end.bad_input.spoiling import poison

    poison(both.second, tmp_path / "bad", float("nan"))
    before = snapshot(alone)
    result = call(capsys, "add", alone, "--adapter", f"good={both.second}",
                  "--adapter", f"bad={tmp_path / 'bad'}")  # fmt: skip
    assert result.code == 3
    assert snapshot(alone) == before


def test_remove_takes_out_one_adapter_and_nothing_else(both: Both, together: Path) -> None:
    result = command("remove", together, "second", "--json", without=LIGHT)
    assert result.code == 0, result.err
    assert files_of(together) == files_of(both.alone)
    assert manifest_of(together) == manifest_of(both.alone)


def test_remove_of_an_unknown_adapter_names_the_known(together: Path, capsys) -> None:
    before = snapshot(together)
    result = call(capsys, "remove", together, "third")
    assert result.code == 3
    assert "'third'" in result.message
    assert "first, second" in result.message
    assert snapshot(together) == before


def test_removed_adapter_leaves_no_golden_outputs_and_no_row(both, together, capsys) -> None:
    assert call(capsys, "verify", together, "--base", both.base).code == 0
    assert (together / "golden" / "second.npz").is_file()
    assert call(capsys, "remove", together, "second").code == 0
    assert not (together / "golden" / "second.npz").exists()
    assert_intact(together)
    assert set(report(together, "parity")["graphs"]) == {"base", "first"}
