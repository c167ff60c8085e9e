"""Adapters of other methods in graphs that several adapters share: as LoRA of a chosen rank."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.running import call
from tests.helpers.methods import save_method
from tests.helpers.models import save_tiny_adapter, save_tiny_base


@pytest.fixture
def base(tmp_path):
    return save_tiny_base("llama", tmp_path / "base", "text-generation")


@pytest.fixture
def loha(base, tmp_path):
    return save_method(base, tmp_path / "loha", "LoHaConfig", r=2, target_modules=["q_proj"])


def build(capsys, base, out, mode, adapters, *more):
    words = [word for each in adapters for word in ("--adapter", each)]
    return call(capsys, "merge-and-build", "--base", base, *words, "--mode", mode,
                "--no-latency", "--out", out, *more)  # fmt: skip


def losses_of(out, name):
    record = json.loads((out / "lora_export.json").read_text())["adapters"][name]
    return record["approximation"], record["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["swappable", "batched"])
def test_what_a_rank_loses_is_measured_and_recorded(mode, base, loha, tmp_path, capsys):
    lora = save_tiny_adapter(
        base, tmp_path / "lora", task="text-generation", target_modules=["q_proj"]
    )
    out = tmp_path / "out"
    found = build(capsys, base, out, mode, [f"h={loha}", f"l={lora}"], "--as-rank", "3")
    assert found.code == 0, found.err
    assert "adapter 'h' (LOHA) is held as LoRA of rank 3, which loses up to" in found.err
    record, notes = losses_of(out, "h")
    assert (record["method"], record["rank"]) == ("LOHA", 3)
    assert any("held as LoRA of rank 3" in note for note in notes)
    stored = load_file(loha / "adapter_model.safetensors")
    for name, loss in record["losses"].items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        one, two = (
            stored[f"{module}.hada_w{k}_a"] @ stored[f"{module}.hada_w{k}_b"] for k in (1, 2)
        )
        values = np.linalg.svd((one * two).astype(np.float64), compute_uv=False)
        expected = np.sqrt(np.sum(values[3:] ** 2) / np.sum(values**2))
        assert loss == pytest.approx(expected, rel=1e-3)
        assert expected > 0.01
    plain = json.loads((out / "lora_export.json").read_text())["adapters"]["l"]
    assert "approximation" not in plain or plain["approximation"] is None
    again = call(capsys, "verify", out, "--base", base)
    assert again.code == 0, again.out
    assert "unverified" not in again.out


@pytest.mark.slow
def test_the_full_rank_loses_nothing(base, loha, tmp_path, capsys):
    out = tmp_path / "out"
    found = build(capsys, base, out, "swappable", [f"h={loha}"], "--as-rank", "4")
    assert found.code == 0, found.err
    record, _ = losses_of(out, "h")
    assert max(record["losses"].values()) < 1e-5  # a product of ranks 2 and 2 has rank 4


@pytest.mark.slow
def test_an_adapter_is_added_with_its_base_alone(base, loha, tmp_path, capsys):
    lora = save_tiny_adapter(
        base, tmp_path / "lora", task="text-generation", target_modules=["q_proj"]
    )
    out = tmp_path / "out"
    found = build(capsys, base, out, "swappable", [f"l={lora}"], "--no-verify")
    assert found.code == 0, found.err
    words = ("add", out, "--adapter", f"h={loha}")
    refused = call(capsys, *words)
    assert refused.code == 4
    assert "--as-rank" in refused.err
    refused = call(capsys, *words, "--as-rank", "3")
    assert refused.code == 2
    assert "it needs its base" in refused.err
    added = call(capsys, *words, "--as-rank", "3", "--base", base)
    assert added.code == 0, added.err
    assert losses_of(out, "h")[0]["rank"] == 3
    assert call(capsys, "verify", out, "--base", base).code == 0


def test_a_merged_export_holds_every_method_exactly(base, loha, tmp_path, capsys):
    found = build(capsys, base, tmp_path / "out", "merged", [f"h={loha}"], "--as-rank", "3")
    assert found.code == 2
    assert "merged graphs hold every method exactly" in found.err
    assert not (tmp_path / "out").exists()
