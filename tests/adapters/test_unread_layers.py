"""Modules whose LoRA the unmerged forward ignores: what PEFT itself runs, on tiny models."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from lora_export.adapters.unread_layers import UNREAD_LAYERS
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_AUDIO = {
    **_TEXT,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_DISENTANGLED = {
    **_TEXT,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 16,
    "position_biased_input": False,
}
_MAMBA = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_IDS = {"input_ids": torch.arange(3, 27)[None]}
_SOUND = {"input_values": torch.linspace(-1, 1, 2000)[None]}
_PATCHES = {
    "pixel_values": torch.linspace(-1, 1, 16 * 48).reshape(1, 16, 48),
    "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    "spatial_shapes": torch.tensor([[4, 4]]),
}

MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "deberta": ("DebertaConfig", "DebertaModel", _DISENTANGLED, _IDS),
    "deberta-v2": ("DebertaV2Config", "DebertaV2Model", _DISENTANGLED, _IDS),
    "falcon_mamba": ("FalconMambaConfig", "FalconMambaModel", _MAMBA, _IDS),
    "jamba": (
        "JambaConfig",
        "JambaModel",
        {**_TEXT, "num_key_value_heads": 2, "num_experts": 1, "mamba_d_state": 4, "pad_token_id": 0,
         "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        _IDS,
    ),
    "mamba": ("MambaConfig", "MambaModel", _MAMBA, _IDS),
    "mobilebert": (
        "MobileBertConfig",
        "MobileBertForMaskedLM",
        {**_TEXT, "embedding_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 32,
         "tie_word_embeddings": False},
        _IDS,
    ),
    "sew-d": (
        "SEWDConfig",
        "SEWDModel",
        {**_AUDIO, "squeeze_factor": 2, "position_buckets": 8, "max_position_embeddings": 32},
        _SOUND,
    ),
    "siglip2_vision_model": (
        "Siglip2VisionConfig",
        "Siglip2VisionModel",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "num_patches": 16, "patch_size": 4},
        _PATCHES,
    ),
    "wavlm": ("WavLMConfig", "WavLMModel", _AUDIO, _SOUND),
}  # fmt: skip


def make(model_type: str) -> Any:
    config, model, settings, _ = MODELS[model_type]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def adapted(model: Any, pattern: str) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=pattern))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return wrapped.eval()


def run(model: Any, feeds: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    with torch.inference_mode():
        return model(**feeds)[0]


@pytest.mark.parametrize(
    ("model_type", "end"), [(key, end) for key, ends in UNREAD_LAYERS.items() for end in ends]
)
def test_peft_ignores_the_update_unmerged_and_applies_it_merged(model_type, end) -> None:
    feeds = MODELS[model_type][3]
    plain = run(make(model_type), feeds)
    wrapped = adapted(make(model_type), rf".*{re.escape(end)}")
    unmerged = run(wrapped.get_base_model(), feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_adapter()
    merged = run(wrapped.get_base_model(), feeds)
    assert (unmerged - plain).norm() < 1e-5 * plain.norm()
    assert (merged - plain).norm() > 1e-4 * plain.norm()


def test_merge_and_inspect_say_so(tmp_path: Path, capsys) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make("deberta-v2").save_pretrained(base)
    model = transformers.AutoModel.from_pretrained(base)
    adapted(model, r".*(rel_embeddings|query_proj)").save_pretrained(adapter)
    result = call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}",
                  "--out", tmp_path / "out", "--json")  # fmt: skip
    assert result.code == 0, result.err
    (note,) = [note for note in result.document["notes"] if "reads directly" in note]
    assert "'encoder.rel_embeddings'" in note
    assert "query_proj" not in note
    pair = call(capsys, "inspect", base, adapter, "--json")
    assert "rel_embeddings" in str(pair.document["fit"]["unread"])


@pytest.mark.parametrize("dora", [False, True])
def test_out_projection_of_torch_attention_is_noted(dora, tmp_path: Path, capsys) -> None:
    import peft

    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                "intermediate_size": 48, "image_size": 8, "patch_size": 4}  # fmt: skip
    torch.manual_seed(0)
    made = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**settings)).eval()
    made.save_pretrained(tmp_path / "base")
    feeds = {"pixel_values": torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)}
    plain = made(**feeds).pooler_output
    config = peft.LoraConfig(r=2, target_modules=["head.attention.out_proj"], use_dora=dora)
    wrapped = peft.get_peft_model(made, config).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    assert torch.equal(wrapped.get_base_model()(**feeds).pooler_output, plain)
    wrapped.save_pretrained(tmp_path / "adapter")
    result = call(capsys, "merge", "--base", tmp_path / "base", "--out", tmp_path / "out",
                  "--adapter", f"x={tmp_path / 'adapter'}", "--json")  # fmt: skip
    assert result.code == 0, result.err
    (note,) = [note for note in result.document["notes"] if "reads directly" in note]
    assert "head.attention.out_proj" in note
    pair = call(capsys, "inspect", tmp_path / "base", tmp_path / "adapter", "--json")
    assert "head.attention.out_proj" in str(pair.document["fit"]["unread"])
