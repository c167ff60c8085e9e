"""The task of a checkpoint or an adapter."""

from __future__ import annotations

import pytest

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.graph.spec import tasks


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("RobertaForTokenClassification", "token-classification"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForPreTraining", "fill-mask"),
        ("GPT2LMHeadModel", "text-generation"),
        ("LlamaForCausalLM", "text-generation"),
        ("BertForQuestionAnswering", "question-answering"),
        ("ViTForImageClassification", "image-classification"),
        ("CLIPVisionModel", "image-feature-extraction"),
        ("BertModel", "feature-extraction"),
        ("DebertaV2Model", "feature-extraction"),
    ],
)
def test_task_of_an_architecture(architecture, task) -> None:
    assert tasks.detect({"architectures": [architecture]}).name == task


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("SEQ_CLS", "text-classification"),
        ("TOKEN_CLS", "token-classification"),
        ("CAUSAL_LM", "text-generation"),
        ("FEATURE_EXTRACTION", "feature-extraction"),
    ],
)
def test_adapter_decides_over_the_architecture(kind, task) -> None:
    assert tasks.detect({"architectures": ["BertForMaskedLM"]}, (kind, None)).name == task


def test_unsaid_adapter_leaves_the_architecture() -> None:
    assert tasks.detect({"architectures": ["BertForMaskedLM"]}, (None,)).name == "fill-mask"


def test_adapters_of_two_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="different tasks"):
        tasks.detect({}, ("SEQ_CLS", "CAUSAL_LM"))


def test_unknown_architecture_is_unsupported_and_named() -> None:
    with pytest.raises(UnsupportedError, match="LlavaForConditionalGeneration"):
        tasks.detect({"architectures": ["LlavaForConditionalGeneration"]})


def test_nothing_that_tells_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="neither the checkpoint"):
        tasks.detect({})


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        tasks.by_name("translation")
    assert "translation" in caught.value.message
    assert "text-classification" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", [None, "SEQ_2_SEQ_LM"])
@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("MBartForConditionalGeneration", "text2text-generation"),
        ("MarianMTModel", "text2text-generation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
    ],
)
def test_text_and_speech_are_told_apart_by_the_architecture(kind, architecture, task) -> None:
    assert tasks.detect({"architectures": [architecture]}, (kind,)).name == task


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((), "sentence-similarity"),
        ((None, "FEATURE_EXTRACTION"), "sentence-similarity"),
        (("SEQ_CLS",), "text-classification"),
    ],
)
def test_model_with_a_pooling_makes_sentence_embeddings(kinds, expected: str) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"]}
    assert tasks.detect(config, kinds, pools=True).name == expected


def test_tower_is_read_only_where_a_model_has_one_for_images_and_one_for_texts() -> None:
    class Model:
        pass

    both, one = Model(), Model()
    both.vision_model, both.text_model, one.vision_model = "images", "texts", "images"
    assert tasks.by_name("image-feature-extraction").part_of(both) == "images"
    assert tasks.by_name("feature-extraction").part_of(both) == "texts"
    assert tasks.by_name("image-classification").part_of(both) is both
    assert tasks.by_name("image-feature-extraction").part_of(one) is one
