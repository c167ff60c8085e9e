"""kohya's and diffusers' names of a text encoder's modules, and all else refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from tests.helpers.formats import deltas, factors, write_tensors

A, B = factors(4, 6)
LEAVES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)


def read(tmp_path, tensors, **options):
    path = write_tensors(tmp_path / "lora.safetensors", tensors)
    return read_adapter(path, name="x", source="here", **options)


def flat(module, prefix="lora_te_"):
    return prefix + module.replace(".", "_")


def test_modules_are_those_of_clip(tmp_path):
    """Every name that transformers' CLIP text model has for its matrices, and no other."""
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        vocab_size=9,
        projection_dim=8,
    )
    model = transformers.CLIPTextModelWithProjection(config)
    modules = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear" and name.startswith("text_model.encoder")
    ]
    assert len(modules) == 12 * len(LEAVES)
    tensors = {}
    for seed, name in enumerate(modules):
        a, b = factors(4, 6, seed=seed)
        tensors[f"{flat(name)}.lora_down.weight"] = a
        tensors[f"{flat(name)}.lora_up.weight"] = b
        tensors[f"{flat(name)}.alpha"] = np.array(3.0, np.float16)
    adapter = read(tmp_path, tensors)
    found = deltas(adapter)
    assert adapter.format == "kohya"
    assert set(found) == set(modules)
    for seed, name in enumerate(modules):
        a, b = (each.astype(np.float64) for each in factors(4, 6, seed=seed))
        np.testing.assert_allclose(found[name], 3 / 2 * (b @ a), rtol=1e-12)


@pytest.mark.parametrize("infix", ["lora_linear_layer", "lora"])
def test_diffusers_names(tmp_path, infix):
    module = "text_model.encoder.layers.11.mlp.fc2"
    tensors = {
        f"text_encoder.{module}.{infix}.down.weight": A,
        f"text_encoder.{module}.{infix}.up.weight": B,
    }
    found = deltas(read(tmp_path, tensors))
    np.testing.assert_allclose(found[module], B.astype(float) @ A.astype(float), rtol=1e-12)
    tensors[f"text_encoder.{module}.alpha"] = np.ones(1, np.float32)
    scaled = deltas(read(tmp_path, tensors))
    np.testing.assert_allclose(scaled[module], found[module] / 2, rtol=1e-12)


Q = "text_model_encoder_layers_0_self_attn_q_proj"


def te(prefix="lora_te_", module=Q):
    return {f"{prefix}{module}.lora_down.weight": A, f"{prefix}{module}.lora_up.weight": B}


REFUSED = {
    "unet": ({**te(), "lora_unet_mid_block_attn.lora_down.weight": A}, "lora_unet_mid_block_attn"),
    "diffusers unet": ({"unet.mid.lora.down.weight": A}, "unet.mid"),
    "t5": (te("lora_te3_"), "lora_te3_"),
    "two encoders": ({**te("lora_te1_"), **te("lora_te2_")}, "two text encoders"),
    "loha": ({**te(), f"lora_te_{Q}.hada_w1_a": A}, "LoHa"),
    "lokr": ({f"lora_te_{Q}.lokr_w1": A}, "LoKr"),
    "locon": ({**te(), f"lora_te_{Q}.lora_mid.weight": A}, "LoCon"),
    "dora": ({**te(), f"lora_te_{Q}.dora_scale": B}, "DoRA"),
    "unknown kind": ({**te(), f"lora_te_{Q}.else": B}, "unknown"),
    "unknown module": (te(module="text_model_embeddings"), "not belong to CLIP"),
    "convolution": (
        {f"lora_te_{Q}.lora_down.weight": A.reshape(2, 4, 1, 1),
         f"lora_te_{Q}.lora_up.weight": B.reshape(6, 2, 1, 1)},
        "4 axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_kinds_are_refused_by_name(tmp_path, case):
    tensors, text = REFUSED[case]
    with pytest.raises(UnsupportedError) as error:
        read(tmp_path, tensors)
    assert text in error.value.message
    assert error.value.hint


DAMAGED = {
    "a half": ({f"lora_te_{Q}.lora_down.weight": A}, "has only down"),
    "ranks": ({**te(), f"lora_te_{Q}.lora_up.weight": B[:, :1]}, "rank"),
    "alpha": ({**te(), f"lora_te_{Q}.alpha": A}, "not a single number"),
    "infinite alpha": ({**te(), f"lora_te_{Q}.alpha": np.float32(np.inf)}, "inf"),
    "twice": ({**te(), **te("lora_te1_")}, "two tensors"),
    "integers": ({**te(), f"lora_te_{Q}.lora_up.weight": B.astype(np.int32)}, "int32"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path, case):
    tensors, text = DAMAGED[case]
    with pytest.raises(AdapterError, match=text):
        read(tmp_path, tensors)


def test_alpha_of_the_user_is_of_no_use(tmp_path):
    with pytest.raises(UsageError, match="--alpha"):
        read(tmp_path, te(), alpha=2)
