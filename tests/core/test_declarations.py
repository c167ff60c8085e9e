"""The data of transformers' declarations: true to the installed version, and read as it means."""

from __future__ import annotations

import subprocess
import sys
from zlib import crc32

import pytest
import transformers

from lora_export.core.declarations import (
    ModelClass,
    _table,
    class_for_task,
    class_named,
    classes_of,
    conversions_for,
    covered_version,
    ties_of,
    words_tied,
)
from lora_export.graph.trace.conversion_rules import conversions_of
from tools.model_declarations import build, declared, model_classes

same_version = pytest.mark.skipif(
    transformers.__version__ != covered_version(),
    reason=f"the data is of transformers {covered_version()}",
)

FAMILIES = (
    "AltCLIPModel",
    "GPTNeoXForCausalLM",
    "Gemma3ForConditionalGeneration",
    "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
    "LlavaNextModel",
    "MixtralForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "ViTForImageClassification",
)


def known(name: str) -> ModelClass:
    found = class_named(name)
    assert found is not None
    return found


def in_sample(name: str) -> bool:
    return crc32(name.encode()) % 40 == 0 or name in FAMILIES


def test_reading_loads_no_heavy_library() -> None:
    code = (
        "import lora_export.core.declarations as d; d.class_named('LlamaForCausalLM'); import sys; "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@same_version
@pytest.mark.parametrize("name", FAMILIES)
def test_rules_equal_those_of_the_live_model(name: str) -> None:
    model = build(getattr(transformers, name))
    rules = conversions_for(known(name), model.config.to_dict())
    assert rules == conversions_of(model)
    assert known(name).prefix == model.base_model_prefix


@same_version
@pytest.mark.slow
def test_file_is_what_transformers_declares() -> None:
    # every rule, one class and one model type of 40; all: tools.model_declarations --check
    fresh, stored = declared(in_sample), _table()
    assert fresh["aliases"] == stored["aliases"]
    assert fresh["types"] == {key: row for key, row in stored["types"].items() if in_sample(key)}
    for key in stored["rules"]:
        found, expected = (
            [table["conversions"][at] for at in table["rules"][key]] for table in (fresh, stored)
        )
        assert found == expected, key
    assert fresh["classes"].keys() == {name for name in stored["classes"] if in_sample(name)}
    for name in fresh["classes"]:
        rows = [dict(table["classes"][name]) for table in (fresh, stored)]
        for row, table in zip(rows, (fresh, stored), strict=True):
            for key in ("ties", "parts"):
                row[key] = table[key][row[key]] if key in row else None
        assert rows[0] == rows[1], name
    for name, cls in model_classes().items():
        if in_sample(name) and (model := build(cls)) is not None:
            rules = conversions_for(known(name), model.config.to_dict())
            assert rules == conversions_of(model), name


def test_default_of_the_tie_is_the_class_s_own() -> None:
    assert words_tied({"model_type": "mamba"}) is True
    assert words_tied({"model_type": "llama"}) is False
    assert words_tied({"model_type": "llama", "tie_word_embeddings": True}) is True
    assert words_tied({"model_type": "t5", "tie_word_embeddings": False}) is True  # T5 insists
    assert words_tied({"model_type": "nobody-knows", "tie_word_embeddings": True}) is None


def test_section_of_the_text_model_may_decide_the_tie() -> None:
    section = {"model_type": "llama", "tie_word_embeddings": True}
    assert words_tied({"model_type": "llava", "text_config": section}) is True
    assert words_tied({"model_type": "llava", "text_config": {"model_type": "gemma"}}) is True
    assert words_tied({"model_type": "llava", "text_config": {"model_type": "llama"}}) is False


def test_ties_of_a_model_inside_are_found_below_its_path() -> None:
    config = {"model_type": "blip-2", "text_config": {"model_type": "opt"}}
    (tie,) = [tie for tie in ties_of(known("Blip2ForConditionalGeneration"), config) if tie.scope]
    assert tie.scope == "language_model"
    assert (tie.target, tie.source) == ("lm_head.weight", "model.decoder.embed_tokens.weight")
    assert tie.holds is True


def test_class_inside_follows_from_its_section() -> None:
    config = {"model_type": "blip-2", "text_config": {"model_type": "llama"}}
    (tie,) = [tie for tie in ties_of(known("Blip2ForConditionalGeneration"), config) if tie.scope]
    assert (tie.source, tie.holds) == ("model.embed_tokens.weight", False)


def test_key_of_the_config_may_change_the_ties() -> None:
    marian = known("MarianMTModel")
    assert len(marian.ties_in({})) == 3
    assert dict(marian.ties_in({"share_encoder_decoder_embeddings": False})) == {
        "lm_head.weight": "model.decoder.embed_tokens.weight"
    }


def test_class_by_task() -> None:
    found = class_for_task("gpt2", "CAUSAL_LM")
    assert found is not None
    assert found.name == "GPT2LMHeadModel"
    assert class_for_task("gpt2", "SEQ_2_SEQ_LM") is None
    assert {each.name for each in classes_of("gpt-sw3")} >= {"GPT2LMHeadModel", "GPT2Model"}
    assert classes_of("nobody-knows") == ()
