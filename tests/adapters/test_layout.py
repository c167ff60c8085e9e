"""Layouts and heads of a checkpoint, from names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_export.adapters.canonical import Adapter, LowRank, Saved
from lora_export.adapters.layout import checkpoint_parameters
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import UnsupportedError
from lora_export.core.tensors import MemoryTensor


def tensor(name: str, *shape: int, dtype: str = "float32") -> MemoryTensor:
    return MemoryTensor(name, DTYPES[dtype], np.zeros(shape, DTYPES[dtype].numpy))


def lora(module: str, outputs: int, inputs: int, *, embedding: bool = False) -> LowRank:
    return LowRank(module, tensor("a", 2, inputs), tensor("b", outputs, 2), 1.0, embedding)


def adapter(*updates: LowRank, saved: tuple[Saved, ...] = (), **settings: Any) -> Adapter:
    task_type = settings.pop("task_type", None)
    return Adapter("a", "a", Path(), "peft", updates, saved, task_type, None, "", settings)


def types(model_type: str, shapes: dict[str, tuple[int, ...]], given: Adapter) -> dict[str, str]:
    tensors = {name: tensor(name, *shape) for name, shape in shapes.items()}
    rows = checkpoint_parameters(
        tensors, {"model_type": model_type}, given, prefix="", head_dtype="float32"
    )
    return {row.name: row.module_type for row in rows}


@pytest.mark.parametrize(
    ("model_type", "module", "shape", "settings", "wanted"),
    [
        ("llama", "q_proj", (6, 4), {}, "Linear"),
        ("llama", "q_proj", (4, 4), {}, "Linear"),
        ("llama", "q_proj", (4, 4), {"fan_in_fan_out": True}, "Linear"),
        ("llama", "q_proj", (4, 6), {}, "Linear"),  # a misfit, which resolve names
        ("gpt2", "c_attn", (4, 6), {}, "Conv1D"),
        ("gpt2", "c_proj", (4, 4), {}, "Conv1D"),
        ("gpt2", "score", (6, 4), {}, "Linear"),
        ("gpt2", "score", (4, 4), {}, "Linear"),
        ("other", "c_attn", (4, 6), {"fan_in_fan_out": True}, "Conv1D"),
    ],
)
def test_layout_of_a_weight(model_type, module, shape, settings, wanted) -> None:
    given = adapter(lora(module, 6 if 6 in shape else 4, 4), **settings)
    assert types(model_type, {f"{module}.weight": shape}, given)[f"{module}.weight"] == wanted


def test_a_square_weight_beside_a_conv1d_of_an_unknown_model_is_refused() -> None:
    given = adapter(lora("x", 6, 4), lora("y", 4, 4), fan_in_fan_out=True)
    with pytest.raises(UnsupportedError, match="square"):
        types("other", {"x.weight": (4, 6), "y.weight": (4, 4)}, given)


def test_an_embedding_is_known_by_its_update() -> None:
    given = adapter(lora("wte", 4, 9, embedding=True))
    assert types("gpt2", {"wte.weight": (9, 4)}, given) == {"wte.weight": "Embedding"}


def test_codes_are_refused() -> None:
    tensors = {"q.weight": tensor("q.weight", 4, 4, dtype="int8")}
    with pytest.raises(UnsupportedError, match="int8"):
        checkpoint_parameters(
            tensors, {"model_type": "llama"}, adapter(lora("q", 4, 4)), prefix="", head_dtype=""
        )


def test_a_head_of_a_new_module_is_brought_and_a_lost_parameter_is_not() -> None:
    tensors = {"encoder.x.weight": tensor("encoder.x.weight", 4, 4)}
    saved = (
        Saved("classifier.weight", tensor("c", 3, 4)),
        Saved("bert.encoder.y.weight", tensor("y", 4, 4)),
    )
    rows = checkpoint_parameters(
        tensors, {"model_type": "bert"}, adapter(saved=saved), prefix="bert.", head_dtype="float16"
    )
    assert [(row.name, row.dtype) for row in rows[1:]] == [("classifier.weight", "float16")]
