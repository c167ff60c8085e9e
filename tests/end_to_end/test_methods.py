"""Adapters of other methods than LoRA, and whole tensors, as graphs, each compared with PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.core.manifest import read_manifest
from tests.cli.running import call
from tests.helpers.methods import save_method

if TYPE_CHECKING:
    from pathlib import Path

GENERATION = "text-generation"


def build(capsys: Any, base: Path, out: Path, *more: object) -> Any:
    return call(capsys, "merge-and-build", "--base", base, "--out", out, "--no-latency", *more)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("swappable", marks=pytest.mark.slow),
        pytest.param("batched", marks=pytest.mark.nightly),
    ],
)
def test_products_are_swapped_and_batched_exactly(
    mode: str, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    vera = save_method(base, tmp_path / "vera", "VeraConfig", r=3, target_modules=["q_proj"])
    ada = save_method(base, tmp_path / "ada", "AdaLoraConfig", init_r=2, total_step=9,
                      target_modules=["q_proj", "v_proj"])  # fmt: skip
    out = tmp_path / mode
    result = build(capsys, base, out, "--mode", mode, "--adapter", vera, "--adapter", ada)
    assert result.code == 0, result.err
    manifest = read_manifest(out)
    assert manifest.graphs[mode].verification == "pass"
    ranks = {name: each.rank for name, each in manifest.adapters.items()}
    assert ranks == {"vera": 3, "ada": 2}


@pytest.mark.slow
def test_computed_and_whole_updates_are_merged_graphs(
    tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    loha = save_method(base, tmp_path / "loha", "LoHaConfig", r=2, target_modules=["q_proj"])
    hira = save_method(base, tmp_path / "hira", "HiraConfig", r=2, target_modules=["down_proj"])
    out = tmp_path / "out"
    result = build(capsys, base, out, "--adapter", loha, "--adapter", hira)
    assert result.code == 0, result.err
    random = np.random.default_rng(0)
    norms = {
        name: value + 0.1 * random.standard_normal(value.shape).astype(value.dtype)
        for name, value in load_file(base / "model.safetensors").items()
        if "norm" in name
    }
    save_file(norms, tmp_path / "norms.safetensors")
    result = call(capsys, "add", out, "--adapter", f"norms={tmp_path / 'norms.safetensors'}",
                  "--adapter-format", "delta")  # fmt: skip
    assert result.code == 0, result.err
    assert call(capsys, "verify", out, "--base", base).code == 0
    manifest = read_manifest(out)
    assert {manifest.graphs[name].verification for name in ("loha", "hira", "norms")} == {"pass"}
