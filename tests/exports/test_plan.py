"""What a base lacks is named, with what to do about it."""

from __future__ import annotations

import pytest

from lora_export.base.errors import CheckpointError
from lora_export.exports.plan import require_complete


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
