"""Configs drawn at random: what a template makes is what is traced, or there is none for them."""

from __future__ import annotations

import random

import pytest

from lora_export.core.errors import LoraExportError
from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError
from lora_export.graph.templates.shipped import from_template, read_index
from tests.graph.templates.drawn_configs import draw
from tools.templates.compare import same_computation

TYPES = sorted({row["model_type"] for row in read_index()["templates"]} & {
    "bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "phi3",
})  # fmt: skip


def compare(model_type: str, seed: int) -> str | None:
    """Return None where instance and trace are one; the reason where there is no template."""
    from lora_export.graph.template_build import build_template

    rng = random.Random(f"{model_type} {seed}")
    family = FAMILIES[model_type]
    config = draw(family, rng)
    task = by_name("text-generation" if family.rotary or model_type == "gpt2" else "fill-mask")
    dtype = rng.choice(("float32", "float16"))
    try:
        made = from_template(config, task, dtype, 20, Choices(), sentence=None, untied=False)
    except NoTemplateError as error:
        return str(error)
    try:
        traced = build_template(config, task, dtype, 20, Choices())
    except LoraExportError as error:
        pytest.fail(f"{config} has a template and cannot be traced: {error}")
    assert same_computation(made, traced), config
    return None


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "seed"), [("llama", 2), ("bert", 0), ("gpt2", 1)])
def test_some_drawn_configs(model_type: str, seed: int) -> None:
    assert compare(model_type, seed) is None


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", TYPES)
def test_many_drawn_configs(model_type: str) -> None:
    found = [compare(model_type, seed) for seed in range(12)]
    assert None in found, found
