"""``reports/fidelity.json``, against float64 arithmetic on the files themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.exports import assert_intact, manifest_of, report
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TASK = "text-generation"


def measured(base: Path, adapter: Path, out: Path, name: str, scale: float) -> tuple[float, float]:
    """Return the relative error and the unmoved share of one tensor, from its definition."""
    manifest = manifest_of(out)
    (use,) = next(
        uses for uses in manifest["parameters"].values() if uses[0]["initializer"] == name
    )
    stored = load_file(out / "weights" / "x.safetensors")[name].astype(float)
    before = load_file(base / "model.safetensors")[name].astype(float)
    factors = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
    a, b = (factors[f"{stem}{each}.weight"].astype(float) for each in "AB")
    delta = scale * b @ a
    if "transpose" in use["transform"]:
        stored = stored.T
    error = np.linalg.norm(stored - before - delta) / np.linalg.norm(delta)
    return error, float(np.mean(stored == before))


def test_an_export_in_halves_reports_what_it_kept(tiny: TinyModels, tmp_path, capsys) -> None:
    base = tiny.base("llama", TASK)
    adapter = tiny.adapter(base, task=TASK, target_modules=["q_proj", "down_proj"], r=4, alpha=8)
    out = tmp_path / "out"
    build = ("merge-and-build", "--base", base, "--out", out, "--dtype", "float16", "--no-verify")
    done = call(capsys, *build, "--adapter", f"x={adapter}", "--json")
    assert done.code == 0, done.err
    row = report(out, "fidelity")["graphs"]["x"]
    assert done.document["reports"]["fidelity"]["graphs"]["x"] == row
    assert len(row["tensors"]) == 4
    for name, figures in row["tensors"].items():
        error, unmoved = measured(base, adapter, out, name, 2.0)
        assert figures["dtype"] == "float16"
        np.testing.assert_allclose(figures["relative_error"], error, rtol=1e-3)
        np.testing.assert_allclose(figures["unmoved_share"], unmoved, atol=1e-12)
    assert row["lossy"] == []
    assert_intact(out)

    tiny_scale = ("--adapter", f"faint={adapter}", "--scale", "faint=1e-4", "--base", base)
    added = call(capsys, "add", out, *tiny_scale)
    assert added.code == 0
    assert "warning: 4 tensor(s) of faint" in added.err
    assert "fidelity of faint: relative error" in added.out
    found = report(out, "fidelity")["graphs"]
    assert found["x"] == row
    assert len(found["faint"]["lossy"]) == 4
    assert call(capsys, "remove", out, "faint").code == 0
    assert list(report(out, "fidelity")["graphs"]) == ["x"]
    assert_intact(out)


def test_float32_has_nothing_to_report(tiny: TinyModels, tmp_path, capsys) -> None:
    base = tiny.base("llama", TASK)
    adapter = tiny.adapter(base, task=TASK)
    done = call(capsys, "merge-and-build", "--base", base, "--out", tmp_path / "out",
                "--adapter", f"x={adapter}", "--no-verify", "--json")  # fmt: skip
    assert done.code == 0
    assert "fidelity" not in done.document["reports"]
    assert not (tmp_path / "out" / "reports").exists()
