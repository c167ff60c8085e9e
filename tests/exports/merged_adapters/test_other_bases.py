"""Adapters of other bases, other bases, damaged ones: refused, and nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.commands.add import add
from lora_export.core.errors import AdapterError, CheckpointError, ExportDirectoryError
from tests.exports.merged_adapters.example import TASK, intact, spec
from tests.helpers.builds import build, file_hashes
from tests.helpers.peft_files import pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path


def test_an_adapter_of_another_base_is_refused_and_nothing_changes(export_dir, tiny):
    other = tiny.base("roberta", TASK)
    before = file_hashes(export_dir)
    with pytest.raises(AdapterError, match="match nothing in the base"):
        add(export_dir, [spec("other", tiny.adapter(other))])
    assert file_hashes(export_dir) == before


def test_an_adapter_of_a_wider_base_is_refused(export_dir, tiny):
    wider = tiny.base("bert", TASK, hidden_size=48)
    with pytest.raises(AdapterError, match="do not fit") as caught:
        add(export_dir, [spec("other", tiny.adapter(wider))])
    assert "[48, 48]" in caught.value.message
    assert "[32, 32]" in caught.value.message


def test_an_adapter_that_is_damaged_leaves_nothing(export_dir, tmp_path):
    module = "bert.encoder.layer.0.attention.self.query"
    tensors = pair(module, 32, 32)
    tensors[f"base_model.model.{module}.lora_B.weight"][3, 1] = np.nan
    folder = write_peft(tmp_path / "bad", tensors)
    before = file_hashes(export_dir)
    with pytest.raises(AdapterError, match=r"lora_B.*NaN"):
        add(export_dir, [spec("bad", folder)])
    assert file_hashes(export_dir) == before
    assert intact(export_dir)


def test_another_base_is_refused_by_its_fingerprint(export_dir, tiny, two):
    before = file_hashes(export_dir)
    with pytest.raises(ExportDirectoryError, match="not the base of this export"):
        add(export_dir, [spec("two", two)], base=tiny.base("bert", TASK, seed=5))
    assert file_hashes(export_dir) == before


def test_building_from_another_base_into_an_export_is_refused(export_dir, tiny, one):
    before = file_hashes(export_dir)
    with pytest.raises(ExportDirectoryError, match="another base"):
        build(tiny.base("bert", TASK, seed=5), {"one": one}, export_dir)
    assert file_hashes(export_dir) == before


def test_an_adapter_without_the_head_that_the_base_lacks_is_refused(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    full = tiny.adapter(bare, seed=11, modules_to_save=["classifier", "pooler"])
    export_dir = build(bare, {"full": full}, tmp_path / "out", task=TASK).output
    headless = write_peft(
        tmp_path / "headless", pair("bert.encoder.layer.0.attention.self.query", 32, 32)
    )
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        add(export_dir, [spec("headless", headless)])
    assert intact(export_dir)


def test_a_base_graph_without_its_head_is_marked_and_its_adapters_are_not(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    full = tiny.adapter(bare, seed=11)
    manifest = build(bare, {"full": full}, tmp_path / "out", task=TASK).manifest
    assert manifest.graphs["base"].missing == ["classifier.bias", "classifier.weight"]
    assert manifest.graphs["full"].missing == []
    assert manifest.adapters["full"].missing_in_base == ["classifier.bias", "classifier.weight"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _turn(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"shape":[32,48]', b'"shape":[48,32]', 1))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights/base.safetensors", _cut),
        ("weights/base.safetensors", _append),
        ("weights/base.safetensors", _turn),
        ("base.onnx", _append),
        ("base.onnx", lambda path: path.unlink()),
    ],
)
def test_a_damaged_base_is_not_built_on(export_dir, two, file, damage):
    damage(export_dir / file)
    before = file_hashes(export_dir)
    with pytest.raises(ExportDirectoryError, match=r"was changed or damaged") as error:
        add(export_dir, [spec("two", two)])
    assert file in error.value.message
    assert file_hashes(export_dir) == before
