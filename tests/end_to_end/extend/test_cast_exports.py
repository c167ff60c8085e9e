"""Adapters added to an export in float16, with the base and without it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.exports import manifest_of, report
from tests.cli.running import call, snapshot
from tests.end_to_end.extend.example import TASK, files_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture(scope="module")
def cast(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a float32 base exported in float16, with one adapter, and another adapter."""
    from lora_export.cli import run

    base = tiny.base("deberta-v2", TASK)
    first, second = tiny.adapter(base, seed=1), tiny.adapter(base, seed=2)
    out = tmp_path_factory.mktemp("cast") / "out"
    given = ["--base", str(base), "--task", TASK, "--dtype", "float16", "--no-latency"]
    assert run(["merge-and-build", "--quiet", *given, f"--adapter=first={first}",
                f"--adapter=second={second}", "--out", str(out)]) == 0  # fmt: skip
    return base, second, out


def test_float16_export_is_within_its_tolerance(cast) -> None:
    rows = report(cast[2], "parity")["graphs"]
    assert {row["tolerance"] for row in rows.values()} == {5e-3}
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    assert 1e-6 < rows["first"]["metrics"]["relative_l2"] < 5e-3


def test_another_dtype_is_refused(cast, tmp_path: Path, capsys) -> None:
    base, second, out = cast
    before = snapshot(out)
    result = call(capsys, "export", "--base", base, "--task", TASK, "--dtype", "float32",
                  "--adapter", f"third={second}", "--out", out)  # fmt: skip
    assert result.code == 3
    assert "another dtype: float16, not float32" in result.message
    assert snapshot(out) == before


def test_add_to_a_cast_export_is_exact_from_the_base(cast, tmp_path, capsys) -> None:
    base, second, out = cast
    shutil.copytree(out, tmp_path / "out")
    before = files_of(tmp_path / "out")["weights/second.safetensors"]
    result = call(capsys, "add", tmp_path / "out", "--adapter", f"second={second}",
                  "--base", base, "--replace")  # fmt: skip
    assert result.code == 0, result.err
    assert files_of(tmp_path / "out")["weights/second.safetensors"] == before
    assert manifest_of(tmp_path / "out")["adapters"]["second"]["merged_from"] == "checkpoint"


def test_add_to_a_cast_export_without_the_base_says_so(cast, tmp_path, capsys) -> None:
    base, second, out = cast
    shutil.copytree(out, tmp_path / "out")
    result = call(
        capsys, "add", tmp_path / "out", "--adapter", f"second={second}", "--replace", "--json"
    )
    assert result.code == 0, result.err
    assert result.document["adapters"]["second"]["merged_from"] == "export"
    verified = call(capsys, "verify", tmp_path / "out", "--base", base)
    assert verified.code == 0, verified.out
