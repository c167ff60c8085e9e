"""An added adapter is bit for bit what a build from scratch writes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

from lora_export.commands.add import add
from lora_export.core.manifest import read_manifest
from tests.exports.merged_adapters.example import TASK, files_of, intact, spec
from tests.helpers.builds import build, file_hashes
from tests.helpers.measure import ROOT


def test_an_added_adapter_is_bit_identical_to_a_built_one(export_dir, base, one, two, tmp_path):
    add(export_dir, [spec("two", two)])
    both = build(base, {"one": one, "two": two}, tmp_path / "both").output
    alone = build(base, {"two": two}, tmp_path / "alone").output
    assert files_of(export_dir, "two") == files_of(both, "two") == files_of(alone, "two")
    assert intact(export_dir)
    assert file_hashes(export_dir) == file_hashes(both)


def test_the_order_of_the_adapters_changes_no_file_but_the_manifests_order(
    base, one, two, tmp_path
):
    forth = build(base, {"one": one, "two": two}, tmp_path / "forth").output
    back = build(base, {"two": two, "one": one}, tmp_path / "back").output
    hashes = [file_hashes(export_dir) for export_dir in (forth, back)]
    for table in hashes:
        del table["lora_export.json"]
    assert hashes[0] == hashes[1]


def test_the_same_build_twice_is_the_same_bytes(with_one, base, one, tmp_path):
    again = build(base, {"one": one}, tmp_path / "again").output
    assert file_hashes(again) == file_hashes(with_one)


def test_an_adapter_of_another_number_of_labels_is_bit_identical_too(
    export_dir, base, one, wide, tmp_path
):
    add(export_dir, [spec("wide", wide)])
    alone = build(base, {"wide": wide}, tmp_path / "alone").output
    assert files_of(export_dir, "wide") == files_of(alone, "wide")
    add(alone, [spec("one", one)])
    assert files_of(export_dir, "one") == files_of(alone, "one")
    assert load_file(export_dir / "weights" / "wide.safetensors")["classifier.bias"].shape == (5,)


def test_a_base_without_a_head_gives_the_same_files_whichever_adapter_came_first(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    narrow = tiny.adapter(bare, seed=11, modules_to_save=["classifier", "pooler"])
    broad = tiny.adapter(bare, seed=13, labels_count=5)
    forth = build(bare, {"narrow": narrow}, tmp_path / "forth", task=TASK).output
    add(forth, [spec("broad", broad)])
    back = build(bare, {"broad": broad}, tmp_path / "back", task=TASK).output
    add(back, [spec("narrow", narrow)])
    for name in ("narrow", "broad"):
        assert files_of(forth, name) == files_of(back, name)
    assert (forth / "weights/base.safetensors").read_bytes() == (
        back / "weights/base.safetensors"
    ).read_bytes()


def test_the_added_graph_computes_what_peft_computes(export_dir, base, wide):
    import onnxruntime
    import peft
    import torch

    from tests.helpers.models import load_tiny

    add(export_dir, [spec("wide", wide)])
    session = onnxruntime.InferenceSession(str(export_dir / "wide.onnx"))
    ids = np.random.default_rng(0).integers(1, 200, (3, 9))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    assert session.get_outputs()[0].shape == ["batch", 5]
    (found,) = session.run(None, feeds)
    model = peft.PeftModel.from_pretrained(load_tiny(base, TASK, labels_count=5), str(wide)).eval()
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found, expected.logits.numpy(), rtol=1e-4, atol=1e-5)


def test_several_adapters_at_once(export_dir, two, wide):
    outcome = add(export_dir, [spec("two", two), spec("wide", wide)])
    assert list(outcome.manifest.adapters) == ["one", "two", "wide"]
    assert intact(export_dir)


def test_adding_imports_neither_torch_nor_transformers(export_dir, two):
    code = """
import sys
from pathlib import Path
from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
add(Path(sys.argv[1]), [AdapterSpec(name="two", source=sys.argv[2])])
heavy = {"torch", "transformers", "peft", "onnxruntime", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, export_dir, two], cwd=ROOT, check=True)
    assert "two" in read_manifest(export_dir).adapters
