"""Messages on quantized weights: ``inspect`` and the outcome of a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.numpy import load_file

from lora_export.core.manifest import read_manifest
from lora_export.exports.quantized_summary import quantized_summary
from tests.cli.running import call
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES = "text-classification"
KEPT = ["roberta.encoder.layer.0.attention.self.query.weight"]


@pytest.fixture
def export(tiny: TinyModels, tmp_path: Path) -> Path:
    base = tiny.base("roberta", CLASSES)
    choice = {"weights": "int4", "keep": ["layer.0.attention.self.query"]}
    build(base, {"one": tiny.adapter(base)}, tmp_path / "out", quantize=choice, dtype="float16")
    return tmp_path / "out"


def test_the_bytes_are_those_of_the_file(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = load_file(export / "weights" / "base.safetensors")
    integers = [name.removesuffix(".quantized") for name in stored if name.endswith(".quantized")]
    taken = sum(
        stored[f"{name}{end}"].nbytes for name in integers for end in (".quantized", ".scale")
    )
    found = call(capsys, "inspect", str(export), "--json").document["quantized"]
    assert found["bytes"] == taken == sum(each["bytes"] for each in found["groups"])
    assert sum(each["parameters"] for each in found["groups"]) == len(integers)
    assert {(each["scheme"], each["block_size"]) for each in found["groups"]} == {
        ("int4", 32), ("int4", 16), ("int8", 0),
    }  # fmt: skip
    assert set(KEPT) <= set(found["kept"])
    assert found["kept_bytes"] == sum(stored[name].nbytes for name in found["kept"])


def test_the_text_says_what_is_quantized_and_what_is_not(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = call(capsys, "inspect", str(export)).out
    assert "int4, blocks of 32: " in text
    assert "int8, a scale per output or row: " in text
    (line,) = (each for each in text.splitlines() if each.startswith("  in float"))
    assert KEPT[0] in line


def test_a_float_export_has_no_such_lines(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.base("roberta", CLASSES)
    build(base, {"one": tiny.adapter(base)}, tmp_path / "out")
    assert quantized_summary(read_manifest(tmp_path / "out")) is None
    assert "quantized" not in call(capsys, "inspect", str(tmp_path / "out")).out


def test_a_build_ends_with_the_bytes(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.base("roberta", CLASSES)
    result = call(
        capsys, "merge-and-build", "--base", str(base), "--adapter", str(tiny.adapter(base)),
        "--task", CLASSES, "--quantize", "int8", "--no-verify", "--no-latency",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.code == 0, result.err
    (line,) = (each for each in result.out.splitlines() if "quantized:" in each)
    assert " in int8; " in line
    assert "of float32 (" in line
