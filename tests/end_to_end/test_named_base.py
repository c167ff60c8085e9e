"""An adapter that names another base, from the build to every report; and the verdict in JSON."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A base without a head, an adapter that was trained on a changed copy of it, and the copy."""
    root = tmp_path_factory.mktemp("named")
    base = tiny.base("bert", "feature-extraction")
    named = shutil.copytree(base, root / "named")
    path = named / "model.safetensors"
    values = {k: np.ascontiguousarray(v) for k, v in load_file(path).items()}
    values["encoder.layer.1.attention.self.query.weight"][0] += 1
    save_file(values, path, {"format": "pt"})
    return base, tiny.adapter(named, task=TASK), named


@pytest.fixture(scope="module")
def built(parts, tmp_path_factory) -> Path:
    """An export of the base with the adapter."""
    from lora_export.cli import run

    base, adapter, _ = parts
    out = tmp_path_factory.mktemp("built") / "out"
    code = run(["merge-and-build", "--base", str(base), "--adapter", f"x={adapter}", "--out",
                str(out), "--no-latency", "--quiet"])  # fmt: skip
    assert code == 0
    return out


def copied(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "out")


def manifest_of(export_dir: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((export_dir / "lora_export.json").read_text())
    return document


def test_the_note_is_in_the_manifest_and_in_every_report(built, parts, tmp_path, capsys) -> None:
    (note,) = manifest_of(built)["adapters"]["x"]["notes"]
    assert f"names the base {str(parts[2])!r}" in note
    assert "other values in 'encoder.layer.1.attention.self.query.weight'" in note
    parity = json.loads((built / "reports" / "parity.json").read_text())
    assert parity["graphs"]["x"]["notes"] == [note]
    assert "other values in" in (built / "reports" / "report.html").read_text()
    assert "other values in" in (built / "reports" / "report.md").read_text()
    result = call(capsys, "report", copied(built, tmp_path), "--github")
    assert "::warning title=Adapter x::" in result.out


def test_strict_refuses_before_anything_is_written(parts, tmp_path, capsys) -> None:
    base, adapter, _ = parts
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"x={adapter}", "--out",
                  tmp_path / "out", "--strict")  # fmt: skip
    assert result.code == 3, result.err
    assert "names the base" in result.message
    assert not (tmp_path / "out").exists()


def test_add_compares_the_named_folder_with_the_recorded_fingerprint(
    built, parts, tmp_path, capsys, tiny
) -> None:
    base, adapter, _ = parts
    out = copied(built, tmp_path)
    strict = call(capsys, "add", out, "--adapter", f"y={adapter}", "--strict")
    assert strict.code == 3
    assert "y" not in manifest_of(out)["adapters"]
    result = call(capsys, "add", out, "--adapter", f"y={adapter}", "--json")
    assert result.code == 0, result.err
    (note,) = result.document["notes"]
    assert "fingerprint" in note
    assert manifest_of(out)["adapters"]["y"]["notes"] == [note]
    own = tiny.adapter(base, task=TASK)
    right = call(capsys, "add", out, "--adapter", f"z={own}", "--strict", "--json")
    assert (right.code, right.document["notes"]) == (0, [])


def test_verify_notes_it_again(built, parts, tmp_path, capsys) -> None:
    base, adapter, _ = parts
    out = copied(built, tmp_path)
    where = ("--adapter", f"x={adapter}")
    alone = call(capsys, "verify", out, "--json")
    assert len(alone.document["notes"]) == 1
    again = call(capsys, "verify", out, "--base", base, *where, "--json")
    assert again.code == 0, again.err
    (note,) = again.document["notes"]
    assert again.document["reports"]["parity"]["graphs"]["x"]["notes"] == [note]
    strict = call(capsys, "verify", out, "--base", base, *where, "--strict")
    assert strict.code == 3


def test_the_verdict_is_about_what_can_be_deployed(built, tmp_path, capsys) -> None:
    out = copied(built, tmp_path)
    result = call(capsys, "verify", out, "--json")
    assert result.document["graphs"]["base"]["verification"] == "unverified"
    assert result.document["verdict"] == "pass"
    assert result.document["deployable"] == ["x"]
    assert "parity of base: not applicable" in call(capsys, "verify", out).out
    github = call(capsys, "report", out, "--github").out
    assert "Parity of base" not in github
    assert "not applicable" in (out / "reports" / "report.html").read_text()
    path = out / "lora_export.json"
    table = manifest_of(out)
    table["graphs"]["x"]["verification"] = "fail"
    path.write_text(json.dumps(table))
    removed = call(capsys, "remove", out, "x", "--json")
    assert removed.document["deployable"] == []
