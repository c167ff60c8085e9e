"""``verify --only``: what is named is verified, and nothing is said anew of the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.core.manifest import read_manifest
from lora_export.core.reports.parity_report import ParityRow
from lora_export.verification.parity import GraphParity
from lora_export.verification.record import record_parity
from tests.cli.exports import manifest_of, report
from tests.cli.running import call
from tests.helpers.builds import build, file_hashes
from tests.helpers.handmade import save_export

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.ondevice.judge.tolerances import Verdict

TASK = "text-classification"


def test_an_unknown_name_lists_the_known(tmp_path: Path, capsys) -> None:
    export = save_export(tmp_path / "out")
    result = call(capsys, "verify", export, "--only", "b")
    assert result.code == 3
    assert "has no adapter 'b'" in result.message
    assert "--only takes: base, a." in result.message


def test_a_data_set_needs_an_adapter(tmp_path: Path, capsys) -> None:
    export = save_export(tmp_path / "out")
    result = call(capsys, "verify", export, "--only", "base", "--base", tmp_path, "--dataset",
                  tmp_path / "d.jsonl")  # fmt: skip
    assert result.code == 2
    assert "--only ADAPTER" in result.message


def shared_export(folder: Path, **verdicts: str) -> Path:
    """Write an export whose manifest has a swappable graph with adapters of these verdicts."""
    export_dir = save_export(folder)
    manifest = manifest_of(export_dir)
    graph = {**manifest["graphs"].pop("a"), "mode": "swappable", "verification": "fail"}
    manifest["graphs"]["swappable"] = graph
    record = manifest["adapters"].pop("a")
    for name, verdict in verdicts.items():
        pack = {"onnx_adapter": f"adapters/{name}.onnx_adapter", "safetensors": "x",
                "base": "0" * 64, "verification": verdict}  # fmt: skip
        manifest["adapters"][name] = {**record, "pack": pack}
    (export_dir / "lora_export.json").write_text(json.dumps(manifest))
    return export_dir


def found(**verdicts: Any) -> dict[str, GraphParity]:
    adapters = {
        name: GraphParity(ParityRow(verdict=verdict, reason="now"))
        for name, verdict in verdicts.items()
    }
    own: Verdict = "fail" if "fail" in verdicts.values() else "pass"
    rows = {name: each.row for name, each in adapters.items()}
    row = ParityRow(verdict=own, reason="of now", metrics=None, adapters=rows)
    return {"swappable": GraphParity(row, adapters=adapters)}


@pytest.mark.parametrize(
    ("recorded", "now", "verdict", "reason"),
    [
        ({"a": "fail", "b": "pass"}, {"a": "pass"}, "pass", "of now"),
        ({"a": "pass", "b": "fail"}, {"a": "pass"}, "fail", "b is fail, as recorded"),
        ({"a": "pass", "b": "unverified"}, {"a": "pass"}, "unverified", "b is unverified, as reco"),
        ({"a": "pass", "b": "unverified"}, {"a": "fail"}, "fail", "of now; b is unverified, as"),
        ({"a": "pass", "b": "unverified"}, {"a": "pass", "b": "pass"}, "pass", "of now"),
    ],
)
def test_a_shared_graph_is_as_good_as_the_worst_of_all(
    tmp_path: Path, recorded, now, verdict, reason
) -> None:
    export_dir = shared_export(tmp_path / "out", **recorded)
    earlier = found(**recorded)
    record_parity(export_dir, read_manifest(export_dir), earlier)
    record_parity(export_dir, read_manifest(export_dir), found(**now))
    manifest = manifest_of(export_dir)
    assert manifest["graphs"]["swappable"]["verification"] == verdict
    row = report(export_dir, "parity")["graphs"]["swappable"]
    assert row["verdict"] == verdict
    assert reason in row["reason"]
    for name, before in recorded.items():
        assert manifest["adapters"][name]["pack"]["verification"] == now.get(name, before)
        assert row["adapters"][name]["verdict"] == now.get(name, before)


def place_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what of a manifest holds the verdict on an adapter."""
    own = manifest["adapters"][name]
    place: dict[str, Any] = own.get("pack") or own.get("row") or manifest["graphs"][name]
    return place


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_what_is_not_named_keeps_its_verdict(tiny, tmp_path: Path, capsys, mode: str) -> None:
    base = tiny.base("bert", TASK)
    adapters = {name: tiny.adapter(base, seed=at) for at, name in enumerate(("one", "two"), 61)}
    export_dir = tmp_path / "out"
    build(base, adapters, export_dir, task=TASK, mode=mode, verify={"enabled": True})
    manifest = manifest_of(export_dir)
    place_of(manifest, "two")["verification"] = "ambiguous"
    (export_dir / "lora_export.json").write_text(json.dumps(manifest))
    result = call(
        capsys, "verify", export_dir, "--base", base, "--only", "one", "--json", "--strict",
        "--adapter", f"one={adapters['one']}",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.document["verified"] == ["one"]
    rows = result.document["reports"]["parity"]["graphs"]
    assert list(rows) == ["one" if mode == "merged" else mode]
    own = rows["one"] if mode == "merged" else rows[mode]["adapters"]["one"]
    assert own["against"].startswith("PEFT")
    if mode != "merged":
        assert list(rows[mode]["adapters"]) == ["one"]
    after = manifest_of(export_dir)
    assert place_of(after, "two")["verification"] == "ambiguous"
    if mode != "merged":
        assert after["graphs"][mode]["verification"] == "ambiguous"
    assert set(report(export_dir, "parity")["graphs"]) == set(after["graphs"])
    assert {**file_hashes(export_dir), "lora_export.json": ""} == {
        **after["files"],
        "lora_export.json": "",
    }
    text = call(capsys, "verify", export_dir, "--only", "base", "--quiet").out
    assert "not compared in this run: one, two" in text
    assert "parity of base" in text
    assert "parity of one" not in text
