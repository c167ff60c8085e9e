"""``verify`` of an export: what it compares with, and the faults that it finds."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.exports import (
    assert_intact,
    manifest_of,
    report,
    scale_tensor,
)
from tests.cli.running import call, command, snapshot
from tests.end_to_end.merge_and_build.example import TASK, Built

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def test_verify_against_golden(copied: Path, capsys) -> None:
    result = call(capsys, "verify", copied, "--json")
    assert result.code == 0, result.err
    rows = result.document["reports"]["parity"]["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "base": "pass", "first": "pass", "second": "pass",
    }  # fmt: skip
    assert {row["against"] for row in rows.values()} == {"golden outputs"}
    assert_intact(copied)


def test_verify_against_golden_needs_no_torch(copied: Path) -> None:
    result = command("verify", copied, "--json", without=("torch", "transformers", "peft"))
    assert result.code == 0, result.err
    assert result.document["reports"]["parity"]["graphs"]["first"]["verdict"] == "pass"


def test_verify_against_torch(built: Built, copied: Path, capsys) -> None:
    result = call(capsys, "verify", copied, "--base", built.base, "--seed", 7, "--json")
    assert result.code == 0, result.err
    rows = result.document["reports"]["parity"]["graphs"]
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    assert rows["first"]["against"].startswith("PEFT")
    assert rows["base"]["against"].startswith("transformers")
    assert_intact(copied)


def test_verify_of_a_damaged_weight_is_bad_input(copied: Path, capsys) -> None:
    path = copied / "weights" / "first.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    before = snapshot(copied)
    result = call(capsys, "verify", copied)
    assert result.code == 3
    assert "weights/first.safetensors" in result.message
    assert snapshot(copied) == before


@pytest.mark.parametrize(
    "file", ["base.onnx", "weights/base.safetensors", "golden/second.npz", "hf/config.json"]
)
def test_verify_of_a_missing_file_is_bad_input(copied: Path, capsys, file: str) -> None:
    (copied / file).unlink()
    result = call(capsys, "verify", copied)
    assert result.code == 3
    assert file in result.message


@pytest.mark.parametrize("with_base", [True, False], ids=["torch", "golden"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_wrong_merge_is_found(built: Built, copied: Path, capsys, with_base, name) -> None:
    """A weight a hundredth too large, its hash corrected: only the outputs tell."""
    scale_tensor(copied, f"weights/{name}.safetensors", 1.01, containing="attention")
    against = ("--base", built.base) if with_base else ()
    result = call(capsys, "verify", copied, *against, "--json")
    assert result.code == 5, result.err
    rows = result.document["reports"]["parity"]["graphs"]
    other = "second" if name == "first" else "first"
    assert (rows[name]["verdict"], rows[other]["verdict"]) == ("fail", "pass")
    assert rows[name]["metrics"]["relative_l2"] > 1e-5
    assert manifest_of(copied)["graphs"][name]["verification"] == "fail"
    assert report(copied, "parity")["graphs"][name]["verdict"] == "fail"


def test_failed_verification_says_so_to_a_person(copied: Path, capsys) -> None:
    scale_tensor(copied, "weights/first.safetensors", 1.5, containing="attention")
    result = call(capsys, "verify", copied)
    assert result.code == 5
    assert "parity of first: fail" in result.out


def test_verify_with_another_base_is_bad_input(tiny: TinyModels, copied: Path, capsys) -> None:
    other = tiny.base("bert", TASK, seed=5)
    before = snapshot(copied)
    result = call(capsys, "verify", copied, "--base", other)
    assert result.code == 3
    assert "fingerprint" in result.message
    assert snapshot(copied) == before


def test_verify_with_another_adapter_is_bad_input(built: Built, copied: Path, capsys) -> None:
    other = built.adapters["second"]
    result = call(capsys, "verify", copied, "--base", built.base, "--adapter", f"first={other}")
    assert result.code == 3
    assert "'first'" in result.message


def test_verify_finds_an_adapter_that_has_moved(built: Built, tmp_path: Path, capsys) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(built.adapters["first"], adapter)
    built_now = call(capsys, "export", "--base", built.base, "--adapter", f"a={adapter}",
                     "--task", TASK, "--out", out)  # fmt: skip
    assert built_now.code == 0, built_now.err
    adapter.rename(tmp_path / "elsewhere")
    lost = call(capsys, "verify", out, "--base", built.base)
    assert lost.code == 3
    assert "--adapter a=" in lost.message
    found = call(
        capsys, "verify", out, "--base", built.base, "--adapter", f"a={tmp_path}/elsewhere"
    )
    assert found.code == 0, found.err
