"""``merge`` finds what an adapter changes under whatever names it and the base have.

The oracle is unmerged PEFT for outputs, PEFT's own merge for parameters, both in transformers.
"""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.helpers.merged_models import (
    ENCODER,
    LLAVA,
    TEXT,
    VISION,
    build,
    merged,
    relative,
    renamed,
    train,
)

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "dinov2, gate and up stored as one": (
        "Dinov2Model", "Dinov2Config", {**VISION, "use_swiglu_ffn": True},
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {
                "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4,
            },
            "image_token_id": 120,
            "video_token_id": 121,
        },
    ),
    "llava": ("LlavaForConditionalGeneration", "LlavaConfig", LLAVA),
    "nomic, q, k and v stored as one": ("NomicBertModel", "NomicBertConfig", ENCODER),
    "clip's vision model": ("CLIPVisionModel", "CLIPVisionConfig", VISION),
}  # fmt: skip


@pytest.mark.parametrize("saved_as", ["hub", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_the_model_find_a_checkpoint_of_either_kind(family, saved_as, tmp_path):
    class_name, config_class, settings = FAMILIES[family]
    model = build(class_name, config_class, settings, tmp_path / "hub")
    if saved_as == "model":
        model.save_pretrained(tmp_path / "model", save_original_format=False)
    trained = train(model, tmp_path / "adapter", target_modules="all-linear")
    out = merged(tmp_path / saved_as, tmp_path / "adapter", tmp_path / "out")
    found = type(model).from_pretrained(out).state_dict()
    expected = trained.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    assert all(relative(found[name].float(), each) < 1e-6 for name, each in expected.items())


def test_names_of_the_hub_find_a_checkpoint_of_the_models(tmp_path):
    model = build("ViTForImageClassification", "ViTConfig", VISION, tmp_path / "hub")
    model.save_pretrained(tmp_path / "model", save_original_format=False)
    trained = train(model, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    renames = {
        "vit.layers.": "vit.encoder.layer.",
        "attention.q_proj.": "attention.attention.query.",
        "attention.v_proj.": "attention.attention.value.",
    }

    def old(key: str) -> str:
        for new, was in renames.items():
            key = key.replace(new, was)
        return key

    adapter = renamed(tmp_path / "adapter", old)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "query").replace("v_proj", "value"))
    assert any(
        ".attention.query." in key for key in load_file(adapter / "adapter_model.safetensors")
    )
    out = merged(tmp_path / "model", adapter, tmp_path / "out")
    found = type(model).from_pretrained(out).state_dict()
    expected = trained.merge_and_unload().state_dict()
    assert all(relative(found[name], each) < 1e-6 for name, each in expected.items())


def test_module_is_kept_where_the_base_has_it(tmp_path):
    from tests.helpers.handmade import save_checkpoint
    from tests.helpers.peft_files import pair
    from tests.helpers.peft_files import write_peft as save_peft

    shapes = {"module.layers.0.q.weight": (4, 3), "layers.0.q.weight": (4, 3)}
    base = save_checkpoint(tmp_path / "base", shapes)
    adapter = save_peft(tmp_path / "a", pair("module.layers.0.q", 3, 4), target_modules=["q"])
    out = merged(base, adapter, tmp_path / "out")
    before, after = (load_file(each / "model.safetensors") for each in (base, out))
    changed = [name for name in before if (before[name] != after[name]).any()]
    assert changed == ["module.layers.0.q.weight"]
