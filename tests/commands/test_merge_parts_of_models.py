"""``merge`` of an adapter trained on a part of the base, or on a model that the base is part of.

The oracle is unmerged PEFT for outputs, PEFT's own merge for parameters, both in transformers.
"""

from __future__ import annotations

import pytest
from safetensors.numpy import load_file

from lora_export.core.errors import AdapterError
from tests.helpers.merged_models import (
    ENCODER,
    LLAVA,
    TEXT,
    VISION,
    build,
    merged,
    outputs,
    relative,
    train,
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Return a vision-language model and its text model, saved apart."""
    import transformers

    folder = tmp_path_factory.mktemp("llava")
    whole = build("LlavaForConditionalGeneration", "LlavaConfig", LLAVA, folder / "whole")
    whole.save_pretrained(folder / "model", save_original_format=False)
    text = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).eval()
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    text.save_pretrained(folder / "text")
    return folder


@pytest.mark.parametrize("saved_as", ["whole", "model"])
def test_an_adapter_of_the_text_model_fits_the_whole(saved_as, llava, tmp_path):
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

    text = LlamaForCausalLM.from_pretrained(llava / "text")
    trained = train(
        text, tmp_path / "a", target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"]
    )
    out = merged(llava / saved_as, tmp_path / "a", tmp_path / "out")
    found = outputs(LlavaForConditionalGeneration.from_pretrained(out))
    assert relative(found, outputs(trained)) < 2e-6


def test_an_adapter_of_the_whole_fits_the_text_model(llava, tmp_path):
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

    whole = LlavaForConditionalGeneration.from_pretrained(llava / "whole")
    trained = train(whole, tmp_path / "a", target_modules=r".*language_model.*(q_proj|up_proj)")
    out = merged(llava / "text", tmp_path / "a", tmp_path / "out")
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), outputs(trained)) < 2e-6


def test_an_adapter_of_the_vision_tower_changes_it_alone(llava, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    train(tower, tmp_path / "a", target_modules=["q_proj", "fc1"])
    out = merged(llava / "whole", tmp_path / "a", tmp_path / "out")
    before = load_file(llava / "whole" / "model.safetensors")
    after = load_file(out / "model.safetensors")
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {
        f"vision_tower.encoder.layers.0.{module}.weight"
        for module in ("self_attn.q_proj", "mlp.fc1")
    }


def test_two_parts_that_fit_alike_are_refused_by_name(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    text = {**ENCODER, "num_hidden_layers": 1}
    settings = {"text_config": text, "vision_config": VISION, "projection_dim": 32}
    build("CLIPModel", "CLIPConfig", settings, tmp_path / "clip")
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    train(tower, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    with pytest.raises(AdapterError, match=r"fit 2 parts .*'text_model.'.*'vision_model.'"):
        merged(tmp_path / "clip", tmp_path / "a", tmp_path / "out")
