"""Adapters come, go and are replaced; the others keep their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.commands.add import add
from lora_export.commands.remove import remove
from lora_export.commands.verify import verify
from lora_export.core.errors import AdapterError
from lora_export.core.manifest import read_manifest
from tests.cli.exports import peft_model, run_graph, run_torch
from tests.end_to_end.batched.example import (
    CLOSE,
    LABELS,
    TASK,
    assert_rows,
    by_onnxruntime,
    feeds_of,
)
from tests.helpers.builds import file_hashes, spec

if TYPE_CHECKING:
    from pathlib import Path


def test_adapters_come_and_go_and_the_others_keep_their_rows(
    export_dir, tiny, base, adapters, expected
):
    before = file_hashes(export_dir)
    wide = tiny.adapter(base, seed=64, r=9, target_modules=["query", "intermediate.dense"])
    new = {**expected, "new": run_torch(peft_model(base, wide, TASK, labels_count=3), feeds_of(8))}
    LABELS["new"] = 3
    add(export_dir, [spec("new", wide)])
    assert_rows(export_dir, new, ["new", "mnli", None, "five", "sst2", "new", "mnli", "five"])
    after = file_hashes(export_dir)
    stack = {name for name in after if name.startswith("weights/batched-")}
    assert len(stack) == 1
    changed = {name for name in after if after[name] != before.get(name)}
    pages = {"reports/report.html", "reports/report.md"}
    assert changed == {"lora_export.json", "batched.onnx", *stack, *pages}
    remove(export_dir, "sst2")
    rows = {name: each.row.row for name, each in read_manifest(export_dir).adapters.items()}
    assert rows == {"mnli": 1, "five": 3, "new": 4}
    assert_rows(export_dir, new, ["new", "mnli", None, "five", "five", "new", "mnli", "five"])
    base_logits = run_graph(export_dir, "base", feeds_of(2))
    np.testing.assert_allclose(
        by_onnxruntime(export_dir, feeds_of(2), [2, 2])[:, :3], base_logits, **CLOSE
    )
    add(export_dir, [spec("sst2", adapters["sst2"])])  # the free row
    assert read_manifest(export_dir).adapters["sst2"].row.row == 2
    assert_rows(export_dir, new, ["sst2", "mnli", None, "five", "sst2", "new", "mnli", "five"])
    with pytest.raises(AdapterError, match="already holds"):
        add(export_dir, [spec("sst2", adapters["mnli"])])
    assert verify(export_dir, base=base).exit_code() == 0
    for name in ("sst2", "mnli", "five", "new"):
        remove(export_dir, name)
    np.testing.assert_array_equal(by_onnxruntime(export_dir, feeds_of(2), [0, 0]), base_logits)
    add(export_dir, [spec("mnli", adapters["mnli"])])
    assert_rows(export_dir, new, ["mnli", None])


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_an_adapter_takes_its_rank_its_layers_and_its_magnitudes_with_it(
    export_dir, tiny, base, expected, way
):
    """The stacks that remain have the base as a row, byte for byte, and compute what PEFT does."""
    targets = ["query", "word_embeddings"]
    wide = tiny.adapter(
        base, seed=67, labels_count=2, r=16, target_modules=targets, use_dora=True, strength=1.0
    )
    small = tiny.adapter(base, seed=68, labels_count=2, r=2)
    add(export_dir, [spec("new", small)])
    before = {name: sha for name, sha in file_hashes(export_dir).items() if "batched" in name}
    shapes = stack_shapes(export_dir)
    add(export_dir, [spec("new", wide)], replace=True)
    held = stack_shapes(export_dir)
    assert held["roberta.encoder.layer.0.attention.self.query.lora_A.stack"][-1] == 16
    assert {"roberta.embeddings.word_embeddings.lora_A.stack"} <= held.keys() - shapes.keys()
    assert any("magnitude" in name for name in held.keys() - shapes.keys())
    if way == "replaced":
        add(export_dir, [spec("new", small)], replace=True)
        after = {name: sha for name, sha in file_hashes(export_dir).items() if "batched" in name}
        assert after == before
        wanted = run_torch(peft_model(base, small, TASK, labels_count=2), feeds_of(8))
        found = by_onnxruntime(export_dir, feeds_of(8), [4] * 8)
        np.testing.assert_allclose(found[:, :2], wanted, **CLOSE)
        assert_rows(export_dir, expected, ["sst2", "mnli", None, "five"])
    else:
        remove(export_dir, "new")
        rest = {name: (shape[0] - 1, *shape[1:]) for name, shape in shapes.items()}
        assert stack_shapes(export_dir) == rest
        assert_rows(export_dir, expected, ["sst2", "mnli", None, "five"])
    assert verify(export_dir, base=base).exit_code() == 0


def stack_shapes(export_dir: Path) -> dict[str, tuple[int, ...]]:
    (file,) = (export_dir / "weights").glob("batched-*.safetensors")
    return {name: value.shape for name, value in load_file(file).items()}


def test_an_adapter_that_is_replaced_keeps_its_row(export_dir, tiny, base, expected):
    other = tiny.adapter(base, seed=65, labels_count=3)
    add(export_dir, [spec("mnli", other)], replace=True)
    assert read_manifest(export_dir).adapters["mnli"].row.row == 1
    new = {
        **expected,
        "mnli": run_torch(peft_model(base, other, TASK, labels_count=3), feeds_of(8)),
    }
    assert_rows(export_dir, new, ["mnli", None, "five", "sst2"])
