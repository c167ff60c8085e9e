"""Models that transformers does not build for a task, refused by what is true of them."""

from __future__ import annotations

import pytest
import torch

from lora_export.core.errors import UnsupportedError
from lora_export.graph.spec import tasks
from lora_export.graph.trace.empty_model import build_model

TASK = tasks.by_name("text-generation")


def test_a_known_model_that_is_none_of_the_task_is_not_called_unknown():
    with pytest.raises(
        UnsupportedError, match="text-generation is not a task of 'qwen2_vl'"
    ) as caught:
        build_model({"model_type": "qwen2_vl"}, TASK, torch.float32, None)
    assert "Qwen2VLForConditionalGeneration" in caught.value.hint
    assert "newer" not in caught.value.hint


def test_an_unknown_model_is_called_so():
    with pytest.raises(UnsupportedError, match="has no model type 'new_model'") as caught:
        build_model({"model_type": "new_model"}, TASK, torch.float32, None)
    assert "install a newer transformers" in caught.value.hint
