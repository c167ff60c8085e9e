"""ViT's templates: the bytes of a trace, and the configs that must be traced."""

from __future__ import annotations

from typing import Any

import pytest

from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError, match
from lora_export.graph.templates.shipped import from_template
from tools.templates.compare import same_computation

TINY = {
    "model_type": "vit", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
    "intermediate_size": 37, "image_size": 30, "patch_size": 2, "num_channels": 3,
    "layer_norm_eps": 1e-12, "num_labels": 3,
}  # fmt: skip
BASE = {
    "model_type": "vit", "attention_probs_dropout_prob": 0.0, "encoder_stride": 16,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 768, "image_size": 224,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
    "num_attention_heads": 12, "num_channels": 3, "num_hidden_layers": 12, "patch_size": 16,
    "qkv_bias": True,
}  # fmt: skip


def instance(config: dict[str, Any], task: str, dtype: str) -> Any:
    return from_template(config, by_name(task), dtype, 20, Choices(), sentence=None, untied=False)


def traced(config: dict[str, Any], task: str, dtype: str) -> Any:
    from lora_export.graph.template_build import build_template

    return build_template(config, by_name(task), dtype, 20, Choices())


def test_two_layers_are_the_trace() -> None:
    made = instance(TINY, "image-classification", "float32")
    assert made.origin.name == "vit/image-classification.float32.opset20.zip"
    assert same_computation(made, traced(TINY, "image-classification", "float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "task", "dtype"),
    [
        ({"num_hidden_layers": 7}, "image-classification", "float16"),
        ({"num_hidden_layers": 6, "num_labels": 1000}, "image-classification", "float32"),
        ({**BASE, "num_labels": 10}, "image-classification", "float32"),
        ({**BASE, "pooler_output_size": 768}, "image-feature-extraction", "float32"),
        (
            {"num_hidden_layers": 9, "image_size": 96, "patch_size": 32, "hidden_size": 24},
            "image-feature-extraction",
            "float16",
        ),
    ],
)
def test_an_instance_is_the_trace_byte_by_byte(
    changed: dict[str, Any], task: str, dtype: str
) -> None:
    config = {**TINY, **changed}
    made, wanted = instance(config, task, dtype), traced(config, task, dtype)
    assert made.onnx_bytes == wanted.onnx_bytes
    assert made.describe() == wanted.describe()


@pytest.mark.parametrize(
    "changed",
    [
        {"image_size": [30, 20]},
        {"image_size": 31},
        {"image_size": 2},
        {"image_size": 30.0},
        {"patch_size": [2, 2]},
        {"patch_size": 1},
        {"num_channels": 1},
        {"qkv_bias": False},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"pooler_act": "relu"},
        {"pooler_output_size": "wide"},
        {"head_dim": 16},
        {"num_attention_heads": 5},
        {"layer_norm_eps": 0.0},
        {"num_hidden_layers": 1},
        {"interpolate_pos_encoding": True},
        {"chunk_size_feed_forward": 2},
        {"num_labels": 1},
        {"num_labels": 0},
        {"vocab_size": 100},
        {"grid": 15},
    ],
)
def test_other_configs_have_none(changed: dict[str, Any]) -> None:
    with pytest.raises(NoTemplateError):
        instance({**TINY, **changed}, "image-classification", "float32")


def test_absent_sizes_are_those_of_transformers() -> None:
    found = match(FAMILIES["vit"], {"model_type": "vit"}).sizes
    assert found == match(FAMILIES["vit"], BASE).sizes
    assert (found["grid"], found["hidden"]) == (14, 768)
