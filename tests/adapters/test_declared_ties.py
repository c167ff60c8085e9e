"""Names of a checkpoint that are one weight: by class, config and stored values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_export.adapters.canonical import Adapter, LowRank
from lora_export.adapters.declared_ties import (
    classes_for,
    declared_ties,
    tying_sections,
    untied_config,
)
from lora_export.adapters.ties import TieGroup
from lora_export.core.declarations import class_named
from lora_export.core.dtypes import DTYPES
from lora_export.core.tensors import MemoryTensor

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def tensor(name: str, value: float = 0.0) -> MemoryTensor:
    return MemoryTensor(name, DTYPES["float32"], np.full((9, 4), value, np.float32))


def adapter(module: str = "model.embed_tokens", **settings: Any) -> Adapter:
    task = settings.pop("task_type", None)
    a = MemoryTensor("a", DTYPES["float32"], np.ones((2, 9), np.float32))
    b = MemoryTensor("b", DTYPES["float32"], np.ones((4, 2), np.float32))
    update = LowRank(module, a, b, 1.0, embedding=True)
    return Adapter("a", "a", Path(), "peft", (update,), (), task, None, "", settings)


@pytest.mark.parametrize(
    ("stored", "tie", "task_type", "held"),
    [
        ({EMBEDDING: 0.0}, True, "CAUSAL_LM", (EMBEDDING,)),
        ({EMBEDDING: 0.0}, True, None, (EMBEDDING,)),  # every class of the type that ties agrees
        ({EMBEDDING: 0.0}, False, "CAUSAL_LM", None),
        ({EMBEDDING: 0.0}, None, "CAUSAL_LM", None),  # the class's default
        ({EMBEDDING: 0.0}, True, "SEQ_CLS", None),
        ({EMBEDDING: 0.0, HEAD: 0.0}, True, "CAUSAL_LM", (EMBEDDING, HEAD)),
    ],
)
def test_names_of_one_weight(
    stored: dict[str, float], tie: bool | None, task_type: str | None, held: tuple[str, ...] | None
) -> None:
    config = {"model_type": "llama", **({} if tie is None else {"tie_word_embeddings": tie})}
    tensors = {name: tensor(name, value) for name, value in stored.items()}
    _, ties = declared_ties(tensors, config, adapter(task_type=task_type), prefix="model.")
    assert [group.held for group in ties.groups] == ([held] if held else [])
    assert all(group.names == (EMBEDDING, HEAD) for group in ties.groups)
    assert all(group.input == EMBEDDING for group in ties.groups)


@pytest.mark.parametrize("tie", [True, False])
def test_name_of_other_values_is_apart(tie: bool) -> None:
    config = {"model_type": "llama", "tie_word_embeddings": tie}
    tensors = {EMBEDDING: tensor(EMBEDDING), HEAD: tensor(HEAD, 1.0)}
    _, ties = declared_ties(tensors, config, adapter(task_type="CAUSAL_LM"), prefix="model.")
    groups = (TieGroup((EMBEDDING,), (EMBEDDING,), EMBEDDING, (HEAD,)),) if tie else ()
    assert ties.groups == groups


def test_class_is_the_one_that_was_trained_or_will_be_loaded() -> None:
    config = {"model_type": "llama", "architectures": ["LlamaModel"]}
    recorded = {"auto_mapping": {"base_model_class": "LlamaForCausalLM"}}
    named = {
        "SEQ_CLS": "LlamaForSequenceClassification",
        "CAUSAL_LM": "LlamaForCausalLM",
        None: "LlamaModel",
    }
    for task, name in named.items():
        assert [each.name for each in classes_for(config, adapter(task_type=task))] == [name]
    assert classes_for(config, adapter(**recorded))[0].name == "LlamaForCausalLM"
    assert len(classes_for({"model_type": "llama"}, adapter())) > 3
    assert classes_for({"model_type": "nobody"}, adapter()) == ()


def test_names_of_the_hub_are_found_by_the_model_s() -> None:
    stored = "language_model.model.embed_tokens.weight"
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama", "tie_word_embeddings": True},
    }
    given = adapter("model.language_model.embed_tokens")
    found, ties = declared_ties({stored: tensor(stored)}, config, given, prefix="model.")
    assert [item.parameter for item in found.items] == [stored]
    assert [(group.names, group.held) for group in ties.groups] == [((stored, HEAD), (stored,))]


def test_config_is_untied_in_every_section_that_ties() -> None:
    text = {"model_type": "qwen2_vl_text", "tie_word_embeddings": True}
    config = {"model_type": "qwen2_vl", "tie_word_embeddings": True, "text_config": text}
    untied = untied_config(config, [""])
    assert untied["tie_word_embeddings"] is False
    assert untied["text_config"]["tie_word_embeddings"] is False
    for model_type in ("t5", "switch_transformers"):  # of which the key means a scale, too
        assert untied_config({"model_type": model_type}, [""]) == {"model_type": model_type}


@pytest.mark.parametrize(
    ("name", "config", "sections"),
    [
        ("Gemma3ForConditionalGeneration", {"model_type": "gemma3"}, {""}),
        ("Gemma3ForConditionalGeneration",
         {"model_type": "gemma3", "tie_word_embeddings": False,
          "text_config": {"tie_word_embeddings": False}}, set()),
        ("Blip2ForConditionalGeneration",
         {"model_type": "blip-2", "text_config": {"model_type": "opt"}}, {"text_config"}),
        ("T5ForConditionalGeneration", {"model_type": "t5"}, {""}),
        ("LlamaForCausalLM", {"model_type": "llama"}, set()),
    ],
)  # fmt: skip
def test_sections_that_tie(name: str, config: dict[str, Any], sections: set[str]) -> None:
    known = class_named(name)
    assert known is not None
    assert tying_sections([known], config) == sections
    untied = untied_config(config, sections)
    assert name.startswith("T5") or not tying_sections([known], untied)
