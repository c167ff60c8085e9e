"""``quantize``: a quantized copy of a float export holds what a quantized build holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands.quantize import quantize
from lora_export.commands.recipe_sections import QuantizeSpec
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.exports.integrity import audit
from tests.cli.exports import manifest_of
from tests.helpers.builds import build, file_hashes
from tests.helpers.dequantized import fused_products, run_exact

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES, TEXT = "text-classification", "text-generation"
IDS = np.random.default_rng(3).integers(3, 200, (2, 7))
FEEDS = {
    "input_ids": IDS,
    "attention_mask": np.ones_like(IDS),
    "position_ids": np.tile(np.arange(7), (2, 1)),
    "adapter_ids": np.array([1, 0]),
}


@pytest.mark.parametrize(
    ("kind", "mode", "scheme"),
    [
        ("roberta", "merged", "int4"),
        ("roberta", "swappable", "int4"),
        ("roberta", "batched", "int8"),
        ("llama-tied", "merged", "int4"),
    ],
)
def test_a_copy_holds_what_a_quantized_build_holds(
    tiny: TinyModels, tmp_path: Path, kind: str, mode: str, scheme: Any
) -> None:
    task = CLASSES if kind == "roberta" else TEXT
    base = tiny.base(kind, task)
    labels = {} if task == CLASSES else {"labels_count": None}
    adapters = {"one": tiny.adapter(base, task=task, **labels)}
    plain, built, copied = (tmp_path / name for name in ("plain", "built", "copied"))
    build(base, adapters, plain, task=task, mode=mode)
    before = file_hashes(plain)
    build(base, adapters, built, task=task, mode=mode, quantize=scheme)
    quantize(plain, copied, QuantizeSpec(weights=scheme))
    assert file_hashes(plain) == before
    ours, theirs = file_hashes(copied), file_hashes(built)
    assert ours.keys() == theirs.keys()
    for file in ours:
        if file.startswith(("weights/", "adapters/", "hf/")):
            assert ours[file] == theirs[file], file
    shown = ("format_version", "base", "parameters", "adapters")
    told = [{key: manifest_of(each)[key] for key in shown} for each in (copied, built)]
    for each in told:
        each["base"].pop("template", None)  # opset 20 may have one where 21 has none
    assert told[0] == told[1]
    assert not audit(copied, read_manifest(copied), hashed=True).problems
    graph = "one" if mode == "merged" else mode
    found, expected = (run_exact(each / f"{graph}.onnx", FEEDS) for each in (copied, built))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert fused_products(copied / f"{graph}.onnx", tmp_path) >= 8


def test_a_quantized_export_is_not_quantized_again(tiny: TinyModels, tmp_path: Path) -> None:
    base = tiny.base("roberta", CLASSES)
    build(base, {"one": tiny.adapter(base)}, tmp_path / "out", quantize="int8")
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize(tmp_path / "out", tmp_path / "again", QuantizeSpec(weights="int4"))
    assert not (tmp_path / "again").exists()


def test_a_damaged_export_is_refused_and_an_output_that_is_there_kept(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    export_dir = tmp_path / "out"
    build(base, {"one": tiny.adapter(base)}, export_dir)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(ExportDirectoryError, match="exists"):
        quantize(export_dir, tmp_path / "there", QuantizeSpec(weights="int8"))
    path = export_dir / "weights" / "base.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ExportDirectoryError, match="was changed or damaged"):
        quantize(export_dir, tmp_path / "new", QuantizeSpec(weights="int8"))
    assert not (tmp_path / "new").exists()
