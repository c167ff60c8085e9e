"""``merge-and-build``: the files, the manifest, the reports against figures computed here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.cli.exports import (
    Array,
    assert_intact,
    manifest_of,
    peft_model,
    report,
    run_graph,
    run_torch,
)
from tests.cli.running import call, snapshot, stagings
from tests.end_to_end.merge_and_build.example import ADAPTERS, TASK, Built, cases_of

if TYPE_CHECKING:
    from pathlib import Path


def test_build_succeeds_and_prints_one_json_document(built: Built) -> None:
    assert built.result.code == 0, built.result.err
    document = built.result.document
    assert document["output"] == str(built.out)
    assert set(document["adapters"]) == set(ADAPTERS)
    assert {n: g["verification"] for n, g in document["graphs"].items()} == {
        "base": "pass", "first": "pass", "second": "pass",
    }  # fmt: skip
    assert "error" not in built.result.err
    assert "Traceback" not in built.result.err
    assert "Warning" not in built.result.err


def test_build_leaves_exactly_the_files_of_the_design(built: Built) -> None:
    assert set(snapshot(built.out)) == {
        "lora_export.json",
        "base.onnx",
        "first.onnx",
        "second.onnx",
        "weights/base.safetensors",
        "weights/first.safetensors",
        "weights/second.safetensors",
        "hf/config.json",
        "hf/tokenizer.json",
        "golden/base.npz",
        "golden/first.npz",
        "golden/second.npz",
        "reports/parity.json",
        "reports/latency.json",
        "reports/report.html",
        "reports/report.md",
    }
    assert stagings(built.out.parent) == []


def test_every_file_is_hashed_in_the_manifest(built: Built) -> None:
    assert_intact(built.out)


def test_manifest_says_what_was_built(built: Built) -> None:
    manifest = manifest_of(built.out)
    assert manifest["format_version"] == 1
    assert manifest["base"]["model_type"] == "bert"
    assert manifest["base"]["model_class"] == "BertForSequenceClassification"
    assert manifest["base"]["task"] == TASK
    assert manifest["base"]["dtype"] == "float32"
    assert manifest["base"]["labels"] == ["red", "green", "blue"]
    assert {n: g["mode"] for n, g in manifest["graphs"].items()} == {
        "base": "base", "first": "merged", "second": "merged",
    }  # fmt: skip
    first, second = (manifest["adapters"][name] for name in ADAPTERS)
    assert (first["rank"], second["rank"]) == (4, 8)
    for row in (first, second):
        assert row["format"] == "peft"
        assert row["merged_from"] == "checkpoint"
        assert row["tensors_applied"] == row["tensors_total"] > 0
        assert row["missing_in_base"] == []
    companion = json.loads((built.out / "hf" / "config.json").read_text())
    assert companion["id2label"] == {"0": "red", "1": "green", "2": "blue"}


def test_adapters_share_the_base_file_and_hold_only_what_changed(built: Built) -> None:
    manifest = manifest_of(built.out)
    for name in ADAPTERS:
        assert manifest["graphs"][name]["weights"] == [
            "weights/base.safetensors",
            f"weights/{name}.safetensors",
        ]
    sizes = {name: len(data) for name, data in snapshot(built.out).items()}
    assert sizes["weights/first.safetensors"] < sizes["weights/base.safetensors"] / 2


def test_graphs_and_weights_name_no_place_on_this_machine(built: Built) -> None:
    for name, data in snapshot(built.out).items():
        if name.endswith((".onnx", ".safetensors", ".npz")):
            assert str(built.base.parent).encode() not in data, name
            assert b"/home/" not in data, name


def log_softmax(values: Array) -> Array:
    return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize("name", ADAPTERS)
def test_parity_report_agrees_with_figures_computed_here(built: Built, name: str) -> None:
    """All of the row's figures, from PEFT and ONNX Runtime run by this test."""
    row = report(built.out, "parity")["graphs"][name]
    feeds, _ = cases_of(built)
    model = peft_model(built.base, built.adapters[name], TASK)
    expected = np.concatenate([run_torch(model, each) for each in feeds]).astype(np.float64)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = dict.fromkeys(module.scaling, 0.0)
    plain = np.concatenate([run_torch(model, each) for each in feeds]).astype(np.float64)
    actual = np.concatenate([run_graph(built.out, name, each) for each in feeds])
    actual = actual.astype(np.float64)
    norm = np.linalg.norm
    metrics = row["metrics"]
    assert row["verdict"] == "pass"
    assert row["tolerance"] == 1e-5
    assert row["effect"] == pytest.approx(norm(expected - plain) / norm(expected), rel=1e-3)
    assert row["effect"] > 1e-3
    assert metrics["rows"] == len(expected)
    assert metrics["finite"] is True
    assert metrics["relative_l2"] < 1e-5
    assert metrics["relative_l2"] == pytest.approx(
        norm(actual - expected) / norm(expected), rel=0.5, abs=1e-7
    )
    assert metrics["max_abs"] == pytest.approx(abs(actual - expected).max(), rel=0.5, abs=1e-6)
    cosine = (actual * expected).sum() / norm(actual) / norm(expected)
    assert metrics["cosine"] == pytest.approx(cosine, abs=1e-9)
    agreement = (actual.argmax(-1) == expected.argmax(-1)).mean()
    assert metrics["top1_agreement"] == agreement
    p, q = log_softmax(expected), log_softmax(actual)
    assert metrics["mean_kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), abs=1e-9)


def test_parity_report_of_the_base_has_no_effect(built: Built) -> None:
    row = report(built.out, "parity")["graphs"]["base"]
    assert row["verdict"] == "pass"
    assert row["effect"] is None
    assert row["metrics"]["relative_l2"] < 1e-5


def test_latency_report_holds_ratio_and_interval(built: Built) -> None:
    table = report(built.out, "latency")
    assert set(table["graphs"]) == set(ADAPTERS)
    assert table["environment"]["processors"] >= 1
    for row in table["graphs"].values():
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio"] <= high
        assert row["confidence"] == 0.95
        assert row["verdict"] == "pass"
        assert row["max_ratio"] == 50
        assert row["rounds"] >= 100
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert 0 < row["base_median_ms"] <= row["base_p90_ms"]


def test_printed_reports_are_the_written_ones(built: Built) -> None:
    printed = built.result.document["reports"]
    for name in ("parity", "latency"):
        assert printed[name]["graphs"] == report(built.out, name)["graphs"]


@pytest.mark.parametrize("name", ["base", *ADAPTERS])
def test_golden_outputs_are_those_of_torch(built: Built, name: str) -> None:
    with np.load(built.out / "golden" / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    if name == "base":
        from tests.helpers.models import load_tiny

        model = load_tiny(built.base, TASK)
    else:
        model = peft_model(built.base, built.adapters[name], TASK)
    count = sum(key.endswith(".expected") for key in arrays)
    assert count >= 2
    for index in range(count):
        start = f"{index}.input."
        feeds = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        expected = arrays[f"{index}.expected"]
        assert np.allclose(run_torch(model, feeds), expected, atol=1e-6)
        assert np.allclose(run_graph(built.out, name, feeds), expected, atol=1e-5)


def test_export_works_from_another_place(built: Built, copied: Path, monkeypatch) -> None:
    monkeypatch.chdir("/")
    feeds, _ = cases_of(built)
    assert np.array_equal(
        run_graph(copied, "first", feeds[0]), run_graph(built.out, "first", feeds[0])
    )


def test_second_build_has_the_same_bytes(built: Built, tmp_path: Path, capsys) -> None:
    out = tmp_path / "again"
    given = [f"--adapter={name}={path}" for name, path in built.adapters.items()]
    result = call(capsys, "export", "--base", built.base, *given, "--task", TASK,
                  "--labels", "red,green,blue", "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    before, after = snapshot(built.out), snapshot(out)
    assert set(before) - set(after) == {
        "golden/base.npz", "golden/first.npz", "golden/second.npz",
        "reports/parity.json", "reports/latency.json", "reports/report.html", "reports/report.md",
    }  # fmt: skip
    del after["lora_export.json"]
    assert [name for name in after if after[name] != before[name]] == []


def test_no_verify_skips_reports_and_says_unverified(built: Built, tmp_path, capsys) -> None:
    result = call(capsys, "merge-and-build", "--base", built.base, "--task", TASK,
                  "--adapter", f"a={built.adapters['first']}", "--no-verify",
                  "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err
    assert not (tmp_path / "out" / "reports").exists()
    assert not (tmp_path / "out" / "golden").exists()
    assert "unverified" in result.out
