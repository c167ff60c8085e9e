"""Parameters missing in a base are named, with what to do about them."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from lora_export.core.dtypes import by_name
from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.targets import TARGETS
from lora_export.core.tensors import MemoryTensor
from lora_export.exports.plan import choose_dtype, require_complete
from lora_export.weights.checkpoint import open_checkpoint
from tests.helpers.handmade import save_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    """Return a checkpoint whose only weight is in a dtype of one's choice."""
    opened = open_checkpoint(save_checkpoint(tmp_path))

    def of(dtype: str):
        numpy = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
        values = np.ones((2, 2), numpy[dtype])
        return dataclasses.replace(opened, tensors={"w": MemoryTensor("w", by_name(dtype), values)})

    return of


@pytest.mark.parametrize(
    ("own", "target", "chosen"),
    [
        ("bfloat16", "h100", "bfloat16"),
        ("bfloat16", "jetson-orin", "bfloat16"),
        ("bfloat16", "auto", "float16"),
        ("bfloat16", "onnxruntime-cpu", "float16"),
        ("float16", "jetson-orin", "float16"),
        ("float32", "dgx-spark", "float32"),
    ],
)
def test_the_checkpoints_own_dtype_unless_the_target_lacks_it(checkpoint, own, target, chosen):
    assert choose_dtype(checkpoint(own), None, TARGETS[target]) == chosen


def test_a_dtype_that_the_target_lacks_is_refused_by_name(checkpoint):
    with pytest.raises(UnsupportedError, match="'auto' does not support bfloat16") as caught:
        choose_dtype(checkpoint("float32"), "bf16", TARGETS["auto"])
    assert "float16" in (caught.value.hint or "")
    assert choose_dtype(checkpoint("float32"), "bf16", TARGETS["l4"]) == "bfloat16"


def test_names_that_transformers_changes_while_loading_are_told_from_a_head_that_lacks() -> None:
    missing = ["model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj"]
    unused = ["model.layers.0.block_sparse_moe.experts.0.w2.weight", "model.rotary"]
    with pytest.raises(CheckpointError) as caught:
        require_complete(missing, [], "base", unused)
    assert "'model.layers.0.block_sparse_moe.experts.0.w2.weight'" in (caught.value.hint or "")
    assert "save_original_format=False" in (caught.value.hint or "")
    with pytest.raises(CheckpointError) as caught:
        require_complete(["score.weight"], [], "base", ["lm_head.weight"])
    assert "--task" in (caught.value.hint or "")
