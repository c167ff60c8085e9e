"""Parity against the unmerged adapter: right graphs pass, and each kind of wrong one fails."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.commands.verify import verify
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import AdapterError, ExportDirectoryError
from lora_export.core.manifest import Manifest, edit_manifest, read_manifest, write_manifest
from lora_export.core.reports.report_model import as_json
from lora_export.verification import comparison
from lora_export.verification import export as verify_export_module
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"


@pytest.fixture(scope="module")
def base(tiny):
    return tiny.base("bert", TASK)


@pytest.fixture(scope="module")
def adapter(tiny, base):
    return tiny.adapter(base, seed=21)


@pytest.fixture(scope="module")
def verified(base, adapter, tmp_path_factory):
    return build(
        base, {"one": adapter}, tmp_path_factory.mktemp("out") / "out", verify={"enabled": True}
    ).output


@pytest.fixture
def export_dir(verified, tmp_path):
    return shutil.copytree(verified, tmp_path / "out")


def tamper(export_dir: Path, name: str, change) -> None:
    """Change the values of a weight file in place, and its hash in the manifest."""
    from lora_export.core.files import sha256_of_file
    from lora_export.core.safetensors_file import read_header

    path = export_dir / "weights" / f"{name}.safetensors"
    raw = bytearray(path.read_bytes())
    values = load_file(path)
    for key, tensor in read_header(path)[0].items():
        new = np.ascontiguousarray(change(key, values[key]).astype(values[key].dtype))
        raw[tensor.start_bytes : tensor.start_bytes + new.nbytes] = new.tobytes()
    path.write_bytes(bytes(raw))
    with edit_manifest(export_dir) as manifest:
        files = {**manifest.files, f"weights/{name}.safetensors": sha256_of_file(path)}
        write_manifest(export_dir, manifest.model_copy(update={"files": files}))


def row(outcome, name: str = "one") -> dict[str, Any]:
    return as_json(outcome.reports.parity.graphs[name])


def test_a_right_graph_passes_with_every_figure(verified):
    manifest: Manifest = read_manifest(verified)
    assert {name: graph.verification for name, graph in manifest.graphs.items()} == {
        "base": "pass",
        "one": "pass",
    }
    report = json.loads((verified / "reports/parity.json").read_text())
    found = report["graphs"]["one"]
    assert found["verdict"] == "pass"
    assert found["tolerance"] == 1e-5
    assert found["metrics"]["relative_l2"] < 1e-5
    assert found["metrics"]["top1_agreement"] == 1.0
    assert found["effect"] > 0.01
    assert "PEFT" in found["against"]
    assert report["graphs"]["base"]["effect"] is None
    assert len(found["inputs"]) >= 5
    assert report["environment"]["packages"]["torch"]


def test_the_effect_is_that_of_the_low_rank_updates_alone(tiny, base, tmp_path):
    # The head and the biases stay, and only LoRA's scale is 0: B = 0 has no effect.
    idle = tiny.adapter(base, seed=22, strength=0.0)
    outcome = build(base, {"idle": idle}, tmp_path / "out", verify={"enabled": True})
    assert row(outcome, "idle")["effect"] == 0.0
    assert row(outcome, "idle")["verdict"] == "fail"
    assert "no measurable effect" in row(outcome, "idle")["reason"]
    assert outcome.exit_code() == 5
    allowed = verify(outcome.output, base=base, allow_no_effect=True)
    assert row(allowed, "idle")["verdict"] == "pass"
    assert allowed.exit_code() == 0


WRONG = {
    "twice the delta": lambda new, old: old + 2 * (new - old),
    "no delta": lambda new, old: old,
    "the delta negated": lambda new, old: old - (new - old),
    "a delta of nine tenths": lambda new, old: old + 0.9 * (new - old),
    "the delta transposed": lambda new, old: old + (new - old).T,
    "not a number": lambda new, old: new * np.nan,
}


@pytest.mark.parametrize(
    ("what", "against"), [*((what, "golden") for what in WRONG), ("a delta of nine tenths", "base")]
)
def test_a_wrong_merge_fails(what, against, export_dir, base):
    stored = load_file(export_dir / "weights/base.safetensors")

    def change(key, values):
        if "query" not in key:
            return values
        return WRONG[what](values.astype(np.float64), stored[key].astype(np.float64))

    tamper(export_dir, "one", change)
    outcome = verify(export_dir, base=base if against == "base" else None)
    assert row(outcome)["verdict"] == "fail"
    assert row(outcome, "base")["verdict"] == "pass"
    assert outcome.exit_code() == 5
    assert read_manifest(export_dir).graphs["one"].verification == "fail"


@pytest.mark.parametrize("against", ["base", "golden"])
def test_a_right_graph_passes_again(against, export_dir, base):
    outcome = verify(export_dir, base=base if against == "base" else None, seed=0)
    assert row(outcome)["verdict"] == "pass"
    assert ("golden" in row(outcome)["against"]) == (against == "golden")


def test_a_file_that_changed_is_refused_before_anything_runs(export_dir, base):
    path = export_dir / "weights/one.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ExportDirectoryError, match=r"weights/one\.safetensors"):
        verify(export_dir, base=base)


def test_a_changed_adapter_is_not_taken_for_the_one_that_was_merged(export_dir, base, tiny):
    other = tiny.adapter(base, seed=99)
    with pytest.raises(AdapterError, match="not the adapter that was merged"):
        verify(export_dir, base=base, adapters=[AdapterSpec(name="one", source=str(other))])


def test_an_adapter_that_is_gone_is_asked_for(base, tiny, adapter, tmp_path):
    moved = shutil.copytree(adapter, tmp_path / "here")
    export_dir = build(base, {"one": moved}, tmp_path / "out").output
    moved.rename(tmp_path / "there")
    with pytest.raises(AdapterError, match="was not found at") as caught:
        verify(export_dir, base=base)
    assert "--adapter one=" in (caught.value.hint or "")
    specs = [AdapterSpec(name="one", source=str(tmp_path / "there"))]
    assert row(verify(export_dir, base=base, adapters=specs))["verdict"] == "pass"


def test_without_base_or_golden_outputs_it_is_unverified_and_says_so(base, adapter, tmp_path):
    export_dir = build(base, {"one": adapter}, tmp_path / "out").output
    outcome = verify(export_dir)
    assert row(outcome)["verdict"] == "unverified"
    assert "--base" in row(outcome)["reason"]
    assert outcome.exit_code() == 0
    assert read_manifest(export_dir).graphs["one"].verification == "unverified"


def test_a_reference_that_does_not_fit_in_memory_is_unverified_and_says_so(
    base, adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr(comparison, "available_bytes", lambda: 100_000_000)
    outcome = build(base, {"one": adapter}, tmp_path / "out", verify={"enabled": True})
    assert row(outcome)["verdict"] == "unverified"
    assert "0.1 GB are free" in row(outcome)["reason"]
    assert outcome.manifest.graphs["one"].verification == "unverified"


def test_latency_that_does_not_fit_in_memory_is_unverified(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(verify_export_module, "available_bytes", lambda: 1000)
    outcome = build(
        base, {"one": adapter}, tmp_path / "out", latency={"enabled": True, "rounds": 10}
    )
    assert outcome.reports.latency.graphs["one"].verdict == "unverified"


def test_latency_is_reported_and_gated(base, adapter, tmp_path):
    settings = {"enabled": True, "rounds": 15, "length": 16, "batch": 2}
    outcome = build(
        base, {"one": adapter}, tmp_path / "out", latency={**settings, "max_ratio": 100.0}
    )
    report = json.loads((tmp_path / "out/reports/latency.json").read_text())
    found = report["graphs"]["one"]
    assert found["verdict"] == "pass"
    assert (found["batch"], found["length"], found["rounds"]) == (2, 16, 15)
    assert found["ratio_interval"][0] <= found["ratio"] <= found["ratio_interval"][1]
    assert outcome.exit_code() == 0
    slow = build(base, {"one": adapter}, tmp_path / "slow", latency={**settings, "max_ratio": 0.01})
    assert slow.reports.latency.graphs["one"].verdict == "fail"
    assert slow.exit_code() == 6
