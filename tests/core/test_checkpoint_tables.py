"""The JSON files of a checkpoint: what passes the check serves every function that reads it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import pytest

from lora_export.adapters.formats.rotary import head_count
from lora_export.adapters.fused_layouts import FUSED_NAMES, rows_of_parts
from lora_export.core.checkpoint_tables import DENSE, INDEX, POOLING, check_checkpoint_table
from lora_export.core.declarations import class_named, conversions_for, ties_of, words_tied
from lora_export.core.errors import CheckpointError, LoraExportError
from lora_export.graph.spec import tasks
from lora_export.graph.spec.model_settings import plain_settings
from lora_export.runtime.tokens import first_tokens, stop_tokens
from lora_export.verification.datasets.class_names import label_names
from lora_export.weights.label_names import named_classes
from lora_export.weights.merged_config import merged_config
from lora_export.weights.positions import long_rope_threshold, longest_text
from lora_export.weights.quantized.codes import without_leftover
from lora_export.weights.special_tokens import ids_of, with_special_tokens
from tests.helpers.odd_values import mutated, with_each

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG: Final[dict[str, Any]] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": True,
    "vocab_size": 100,
    "decoder_vocab_size": None,
    "type_vocab_size": 2,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 0,
    "num_labels": 2,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": None,
    "n_positions": None,
    "n_ctx": None,
    "max_target_positions": None,
    "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32},
    "rope_scaling": {"full_attention": {"rope_type": "yarn"}},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "decoder_start_token_id": 1,
    "forced_bos_token_id": 1,
    "id2label": {"0": "a", "1": "b"},
    "problem_type": None,
    "attn_config": {"kv_n_heads": 1},
    "new_decoder_architecture": False,
    "multi_query": True,
    "torch_dtype": "float32",
    "auto_map": {},
    "quantization_config": None,
    "position_embedding_type": "absolute",
    "text_config": {"model_type": "llama", "vocab_size": 10, "max_position_embeddings": 5},
}
"""A config with every setting that some function reads."""


def _config(config: dict[str, Any]) -> None:
    """Ask a config what the package asks."""
    for each in (config, {**config, **(config.get("text_config") or {})}):
        longest_text(each)
        words_tied(each)
    long_rope_threshold(config)
    named_classes(config)
    label_names(None, None, config, 2)
    head_count(config, "k")
    for name in FUSED_NAMES:
        rows_of_parts(config, name, 12)
    without_leftover(config)
    plain_settings(config)
    ids_of(config.get("eos_token_id"))
    with_special_tokens(config, {"eos_token_id": 5, "pad_token_id": 1})
    stop_tokens(config, config)
    first_tokens(config, {})
    merged_config(config, task_type="SEQ_CLS", head_width=2, labels=None, dtype="float16")
    known = class_named("LlamaForCausalLM")
    assert known is not None
    ties_of(known, config)
    conversions_for(known, config)
    tasks.detect(config)


def _nothing(_: dict[str, Any]) -> None:
    return


TABLES: Final[dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], None]]]] = {
    "config.json": (CONFIG, _config),
    "tokenizer.json": (
        {"padding": {"pad_id": 0, "pad_type_id": 0}, "truncation": {"max_length": 5},
         "added_tokens": [], "model": {"vocab": {}}},
        _nothing,
    ),
    "tokenizer_config.json": (
        {"model_max_length": 10**30, "chat_template": "x", "added_tokens_decoder": {}}, _nothing,
    ),
    "sentence_bert_config.json": ({"max_seq_length": 5}, _nothing),
    POOLING: ({"include_prompt": True, "pooling_mode": "mean"}, _nothing),
    DENSE: ({"in_features": 1, "out_features": 2, "bias": True, "activation_function": "x",
             "module_input_name": None, "module_output_name": None}, _nothing),
    INDEX: ({"weight_map": {"a": "model-1.safetensors"}}, _nothing),
}  # fmt: skip


def _refusal(kind: str, table: dict[str, Any]) -> str:
    """Check and use a table; return what refuses it."""
    try:
        check_checkpoint_table(table, kind, CheckpointError, where="'x'", hint="h")
        TABLES[kind][1](table)
    except LoraExportError as error:
        return error.message
    return ""


@pytest.mark.parametrize("kind", TABLES)
def test_every_setting_with_every_odd_value_is_used_or_refused(kind: str) -> None:
    table, _ = TABLES[kind]
    assert not _refusal(kind, table)
    for what, odd in with_each(table):
        message = _refusal(kind, odd)
        assert len(message) < 1_000, what
        assert "\n" not in message, what


@pytest.mark.parametrize("kind", TABLES)
def test_mutated_tables_are_used_or_refused(kind: str) -> None:
    numbers = random.Random(19)
    for _ in range(100):
        assert len(_refusal(kind, mutated(TABLES[kind][0], numbers))) < 1_000


def test_a_section_is_named_with_its_setting() -> None:
    message = _refusal("config.json", {**CONFIG, "text_config": {"vocab_size": "10"}})
    assert message.startswith("text_config in 'x' has the vocab_size '10'; it must be a size")


@pytest.mark.parametrize("key", ["9" * 5_000, "", "-1", "1.5", "one", "²", "٣"])
def test_classes_have_numbers_that_transformers_reads(key: str) -> None:
    message = _refusal("config.json", {**CONFIG, "id2label": {"0": "a", key: "b"}})
    assert "is not the number of a class" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/passwd", "a/b", "", ".", "..", "a\0b", "x" * 256, "é" * 128, None, 5, ["a"], {}],
)
def test_an_index_names_files_beside_it(name: object) -> None:
    message = _refusal(INDEX, {"weight_map": {"a": "ok", "b": name}})
    assert "is not a plain file name" in message


@pytest.mark.parametrize("table", [{}, {"weight_map": None}, {"weight_map": {}}])
def test_an_index_without_tensors_is_refused(table: dict[str, Any]) -> None:
    assert "weight_map" in _refusal(INDEX, table)
