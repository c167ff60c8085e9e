"""Widths that no block divides, and vocabularies of an odd size: stored as int8, said, verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_export.core.manifest import read_manifest
from lora_export.exports.quantized_summary import quantized_summary
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.slow import but_the_first, nightly

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES, TEXT = "text-classification", "text-generation"


@pytest.mark.parametrize(("width", "heads"), but_the_first([(33, 3), (36, 4)]))
def test_a_width_that_no_block_divides_is_int8_and_said(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int, heads: int
) -> None:
    base = tiny.base("roberta", CLASSES, hidden_size=width, num_attention_heads=heads)
    result = call(
        capsys, "merge-and-build", "--base", str(base), "--adapter", str(tiny.adapter(base)),
        "--task", CLASSES, "--quantize", "int4", "--no-latency", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "int8 with a scale per output: " in result.err
    assert f"no block divides {width} inputs" in result.err
    found = quantized_summary(read_manifest(tmp_path / "out"))
    assert found is not None
    groups = {(each.scheme, each.block_size) for each in found.groups}
    assert groups == {("int8", 0), ("int4", 16)}  # 48 inputs of the second layer's products


@pytest.mark.slow
@pytest.mark.parametrize("kind", nightly(["llama-tied", "gpt2", "llama"], but=1))
@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_a_vocabulary_of_an_odd_size(
    tiny: TinyModels, tmp_path: Path, kind: str, mode: str
) -> None:
    base = tiny.base(kind, TEXT, vocab_size=201)
    adapters = {"one": tiny.adapter(base, task=TEXT, labels_count=None)}
    outcome = build(
        base, adapters, tmp_path / "out", task=TEXT, mode=mode, quantize="int4",
        verify={"enabled": True},
    )  # fmt: skip
    assert outcome.exit_code() == 0
