"""Quantized exports against torch with dequantized weights, and PEFT over them; all modes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import peft
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.commands.add import add
from lora_export.commands.remove import remove
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.exports.integrity import audit
from tests.cli.exports import manifest_of, run_torch
from tests.helpers.builds import build, file_hashes, merged_by_peft, spec
from tests.helpers.dequantized import (
    dequantized,
    exact_session,
    fused_products,
    load_values,
    quantized_uses,
    run_exact,
)
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES, TEXT = "text-classification", "text-generation"
IDS = np.random.default_rng(3).integers(3, 200, (2, 7))
MASK = np.ones_like(IDS)
FEEDS = {"input_ids": IDS, "attention_mask": MASK}
POSITIONS = {"position_ids": np.tile(np.arange(7), (2, 1))}
CLOSE = 2e-5
PRODUCTS = 8
ROUNDING = {"int4": 0.12, "int8": 0.01}
"""The largest relative L2 error of values that are rounded to integers."""


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def feeds_of(task: str) -> dict[str, Any]:
    return FEEDS | (POSITIONS if task == TEXT else {"token_type_ids": np.zeros_like(IDS)})


@pytest.mark.parametrize(
    ("kind", "task", "choice"),
    [
        ("roberta", CLASSES, "int4"),
        ("bert", CLASSES, "int8"),
        ("gpt2", TEXT, "int4"),
        ("llama", TEXT, {"weights": "int4", "block_size": 16, "head": "int8"}),
        ("llama-tied", TEXT, "int4"),
        ("deberta-v2", CLASSES, "int4"),
    ],
)
def test_a_merged_graph_computes_with_the_values_that_its_integers_stand_for(
    tiny: TinyModels, tmp_path: Path, kind: str, task: str, choice: Any
) -> None:
    base = tiny.base(kind, task)
    labels = {} if task == CLASSES else {"labels_count": None}
    adapter = tiny.adapter(base, task=task, **labels)
    export_dir = tmp_path / "out"
    build(base, {"one": adapter}, export_dir, task=task, quantize=choice)
    exact = merged_by_peft(base, adapter, task, **labels)
    for graph in ("base", "one"):
        model = load_tiny(base, task, dtype="float32")
        values = dequantized(export_dir, graph)
        load_values(model, values)
        found = run_exact(export_dir / f"{graph}.onnx", feeds_of(task))
        assert error(found, run_torch(model, FEEDS)) < CLOSE, graph
        assert fused_products(export_dir / f"{graph}.onnx", tmp_path) >= PRODUCTS
    for name, form in quantized_uses(export_dir).items():
        assert error(values[name], exact[name]) < ROUNDING[form["scheme"]], name
    problems = audit(export_dir, read_manifest(export_dir), hashed=True).problems
    assert not problems
    assert manifest_of(export_dir)["format_version"] == 2


def test_a_swappable_graph_has_float_adapters_over_a_quantized_base(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    adapters = {
        "plain": tiny.adapter(base, seed=5),
        "dora": tiny.adapter(base, seed=6, r=3, use_dora=True),
    }
    export_dir = tmp_path / "out"
    build(base, adapters, export_dir, mode="swappable", quantize="int4")
    add(export_dir, [spec("later", tiny.adapter(base, seed=7, r=9))])
    values = dequantized(export_dir)
    assert (
        error(run_exact(export_dir / "swappable.onnx", FEEDS), _base_output(base, values)) < CLOSE
    )
    for name, adapter in (*adapters.items(), ("later", tiny.adapter(base, seed=7, r=9))):
        expected = run_torch(_peft_over(base, adapter, values), FEEDS)
        assert error(_with_pack(export_dir, name), expected) < CLOSE, name
    assert fused_products(export_dir / "swappable.onnx", tmp_path) >= PRODUCTS


def test_a_batched_graph_has_float_rows_over_a_quantized_base(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    adapters = {"one": tiny.adapter(base, seed=5), "two": tiny.adapter(base, seed=6, r=3)}
    export_dir = tmp_path / "out"
    build(base, adapters, export_dir, mode="batched", quantize="int8")
    values = dequantized(export_dir)
    for row, adapter in enumerate(adapters.values(), start=1):
        expected = run_torch(_peft_over(base, adapter, values), FEEDS)
        feeds = {**FEEDS, "adapter_ids": np.array([row, 0])}
        found = run_exact(export_dir / "batched.onnx", feeds)
        assert error(found[:1], expected[:1]) < CLOSE
    assert fused_products(export_dir / "batched.onnx", tmp_path) >= PRODUCTS
    remove(export_dir, "one")
    assert set(read_manifest(export_dir).adapters) == {"two"}


def test_adding_gives_what_a_build_gives_and_needs_the_float_base(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("gpt2", TEXT)
    one, two = (tiny.adapter(base, task=TEXT, labels_count=None, seed=seed) for seed in (5, 6))
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    build(base, {"one": one, "two": two}, whole, task=TEXT, quantize="int4")
    build(base, {"one": one}, grown, task=TEXT, quantize="int4")
    before = file_hashes(grown)
    with pytest.raises(UnsupportedError, match="holds quantized") as caught:
        add(grown, [spec("two", two)])
    assert "--base" in str(caught.value.hint)
    assert file_hashes(grown) == before
    add(grown, [spec("two", two)], base=base)
    for file in ("two.onnx", "weights/two.safetensors", "weights/base.safetensors"):
        assert file_hashes(grown)[file] == file_hashes(whole)[file], file
    remove(grown, "two")
    assert file_hashes(grown).keys() == before.keys()


def test_a_manifest_that_lies_about_a_scheme_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    base = tiny.base("roberta", CLASSES)
    export_dir = tmp_path / "out"
    build(base, {"one": tiny.adapter(base)}, export_dir, quantize="int4")
    path = export_dir / "lora_export.json"
    manifest = path.read_text()
    for old, new in (
        ('"scheme": "int4"', '"scheme": "int3"'),
        ('"bits": 4', '"bits": 8'),
        ('"block_size": 32', '"block_size": 33'),
        ('"format_version": 2', '"format_version": 1'),
    ):
        assert old in manifest
        path.write_text(manifest.replace(old, new))
        with pytest.raises(ExportDirectoryError, match="damaged"):
            read_manifest(export_dir)


def test_packed_data_of_a_wrong_length_is_refused_before_anything_is_added(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    export_dir = tmp_path / "out"
    build(base, {"one": tiny.adapter(base)}, export_dir, quantize="int4")
    path = export_dir / "weights" / "base.safetensors"
    tensors = load_file(path)
    name = next(each for each in tensors if each.endswith(".quantized"))
    save_file({**tensors, name: tensors[name][:-8]}, path, {"format": "lora-export/1"})
    with pytest.raises(ExportDirectoryError):
        add(export_dir, [spec("two", tiny.adapter(base, seed=9))], base=base)


def test_heads_stay_as_they_are_and_so_does_what_the_recipe_keeps(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    export_dir = tmp_path / "out"
    keep = {"weights": "int4", "keep": ["layer.0.attention.self.query"], "embeddings": "keep"}
    build(base, {"one": tiny.adapter(base)}, export_dir, quantize=keep)
    names = set(quantized_uses(export_dir))
    assert not any("layer.0.attention.self.query" in each for each in names)
    assert not any("embeddings" in each or "classifier" in each for each in names)
    assert any("layer.1.attention.self.query" in each for each in names)


def test_an_export_of_another_quantization_is_not_extended(
    tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("roberta", CLASSES)
    export_dir = tmp_path / "out"
    build(base, {"one": tiny.adapter(base)}, export_dir, quantize="int8")
    with pytest.raises(ExportDirectoryError, match="another quantization"):
        build(base, {"two": tiny.adapter(base, seed=9)}, export_dir, quantize="int4")
    build(base, {"two": tiny.adapter(base, seed=9)}, export_dir, quantize="int8")
    assert set(read_manifest(export_dir).adapters) == {"one", "two"}


def _base_output(base: Path, values: dict[str, np.ndarray]) -> np.ndarray:
    model = load_tiny(base, CLASSES, dtype="float32")
    load_values(model, values)
    return run_torch(model, FEEDS)


def _peft_over(base: Path, adapter: Path, values: dict[str, np.ndarray]) -> Any:
    """Return the adapter unmerged over the values of a quantized base, with its own head."""
    model = load_tiny(base, CLASSES, dtype="float32")
    load_values(model, values)
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def _with_pack(export_dir: Path, name: str) -> np.ndarray:
    session = exact_session(export_dir / "swappable.onnx")
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(export_dir / "adapters" / f"{name}.onnx_adapter"))
    run = onnxruntime.RunOptions()
    run.add_active_adapter(adapter)
    return np.asarray(session.run(None, FEEDS, run)[0])
