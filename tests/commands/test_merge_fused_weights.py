"""``merge`` of adapters whose modules the base stores as one weight, and the other way round.

The oracle is unmerged PEFT for outputs, PEFT's own merge for parameters, both in transformers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.adapters.fit import header_parameters
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.peft_write import write_peft
from lora_export.adapters.naming import to_checkpoint_names
from lora_export.adapters.resolve import ModelNames
from lora_export.core.errors import UnsupportedError
from lora_export.weights.checkpoint import open_checkpoint
from tests.helpers.merged_models import (
    TEXT,
    VISION,
    build,
    merged,
    outputs,
    relative,
    train,
    train_method,
)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Return a Phi-3, and the same model as a Llama: q, k, v and gate, up apart."""
    import transformers

    folder = tmp_path_factory.mktemp("twins")
    phi = build("Phi3ForCausalLM", "Phi3Config", TEXT, folder / "phi3")
    state = {}
    for name, value in phi.state_dict().items():
        if "qkv_proj" in name:
            for part, rows in (("q", value[:32]), ("k", value[32:48]), ("v", value[48:])):
                state[name.replace("qkv_proj", f"{part}_proj")] = rows
        elif "gate_up_proj" in name:
            state[name.replace("gate_up_proj", "gate_proj")] = value[:64]
            state[name.replace("gate_up_proj", "up_proj")] = value[64:]
        else:
            state[name] = value
    config = transformers.LlamaConfig(**TEXT, rms_norm_eps=phi.config.rms_norm_eps)
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.load_state_dict(state)
    llama.save_pretrained(folder / "llama")
    assert relative(outputs(llama), outputs(phi)) < 1e-6
    return folder, {"phi3": transformers.Phi3ForCausalLM, "llama": transformers.LlamaForCausalLM}


APART = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "all parts": ("llama", {"target_modules": APART}),
    "some parts": ("llama", {"target_modules": ["q_proj", "v_proj", "up_proj"]}),
    "parts of other ranks and scales": (
        "llama",
        {
            "target_modules": ["k_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {"v_proj": 3},
            "use_rslora": True,
        },
    ),
    "DoRA of all parts": ("llama", {"target_modules": APART, "use_dora": True}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "fused, DoRA": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_and_fused_weights_are_merged_into_each_other(case, twins, tmp_path):
    folder, classes = twins
    trained_on, settings = PARTS[case]
    other = "llama" if trained_on == "phi3" else "phi3"
    wrapped = train(
        classes[trained_on].from_pretrained(folder / trained_on), tmp_path / "a", **settings
    )
    expected = outputs(wrapped)
    out = merged(folder / other, tmp_path / "a", tmp_path / "out")
    assert relative(outputs(classes[other].from_pretrained(out)), expected) < 2e-6
    plain = outputs(classes[other].from_pretrained(folder / other))
    assert relative(plain, expected) > 1e-2


METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LoHa of parts": ("llama", "LoHaConfig", {"r": 3, "target_modules": APART}),
    "OFT of some parts": (
        "llama",
        "OFTConfig",
        {"oft_block_size": 4, "use_cayley_neumann": False, "target_modules": ["q_proj", "v_proj"]},
    ),
    "IA3 of parts": (
        "llama",
        "IA3Config",
        {"target_modules": APART, "feedforward_modules": ["down_proj", "gate_proj"]},
    ),
    "LoKr, fused": ("phi3", "LoKrConfig", {"r": 2, "target_modules": ["qkv_proj", "o_proj"]}),
    "HRA, fused": ("phi3", "HRAConfig", {"r": 2, "target_modules": ["gate_up_proj"]}),
}


@pytest.mark.parametrize("case", METHODS)
def test_other_methods_are_merged_into_fused_weights_and_parts(case, twins, tmp_path):
    folder, classes = twins
    trained_on, config, settings = METHODS[case]
    other = "llama" if trained_on == "phi3" else "phi3"
    model = classes[trained_on].from_pretrained(folder / trained_on)
    expected = outputs(train_method(model, tmp_path / "a", config, **settings))
    out = merged(folder / other, tmp_path / "a", tmp_path / "out")
    assert relative(outputs(classes[other].from_pretrained(out)), expected) < 2e-6
    plain = outputs(classes[other].from_pretrained(folder / other))
    assert relative(plain, expected) > 1e-3


def test_a_method_that_needs_the_whole_weight_is_refused_where_it_is_fused(twins, tmp_path):
    folder, classes = twins
    model = classes["llama"].from_pretrained(folder / "llama")
    train_method(model, tmp_path / "a", "HiraConfig", r=2, target_modules=["q_proj"])
    with pytest.raises(UnsupportedError, match=r"needs that weight as a whole"):
        merged(folder / "phi3", tmp_path / "a", tmp_path / "out")


def test_magnitudes_of_some_rows_only_are_refused(twins, tmp_path):
    folder, classes = twins
    model = classes["llama"].from_pretrained(folder / "llama")
    train(model, tmp_path / "a", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(UnsupportedError, match=r"DoRA .* some of the rows of .*qkv_proj"):
        merged(folder / "phi3", tmp_path / "a", tmp_path / "out")


def test_multihead_attention_is_merged_as_peft_runs_it(tmp_path):
    import torch
    from peft import PeftModel
    from transformers import SiglipVisionModel

    model = build("SiglipVisionModel", "SiglipVisionConfig", VISION, tmp_path / "base")
    targets = {"target_modules": ["attention", "fc1"], "rank_pattern": {"attention": 3}}
    trained = train(model, tmp_path / "a", **targets, alpha_pattern={"attention": 5})
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = trained(pixel_values=pixels).pooler_output
    out = merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    loaded = SiglipVisionModel.from_pretrained(out).eval()
    with torch.no_grad():
        assert relative(loaded(pixel_values=pixels).pooler_output, expected) < 2e-6

    checkpoint = open_checkpoint(tmp_path / "base")
    names = ModelNames(header_parameters(checkpoint.tensors), "")
    adapter = read_adapter(tmp_path / "a", name="a", source="a")
    resolved = to_checkpoint_names(adapter, names, config=checkpoint.config)
    assert not resolved.renamed
    (tmp_path / "written").mkdir()
    write_peft(resolved, tmp_path / "written")
    fresh = SiglipVisionModel.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, str(tmp_path / "written")).eval()
    with torch.no_grad():
        assert relative(again(pixel_values=pixels).pooler_output, expected) < 2e-6


def test_parts_are_merged_into_the_weight_of_a_multihead_attention(tmp_path):
    from tests.helpers.handmade import save_checkpoint
    from tests.helpers.peft_files import WRAPPER, pair
    from tests.helpers.peft_files import write_peft as save_peft

    shapes = {"attn.in_proj_weight": (12, 4), "attn.in_proj_bias": (12,), "attn.out.weight": (4, 4)}
    base = save_checkpoint(tmp_path / "base", shapes)
    q, v = pair("attn.q_proj", 4, 4, seed=1), pair("attn.v_proj", 4, 4, seed=2)
    bias = {f"{WRAPPER}attn.v_proj.bias": np.arange(4, dtype=np.float32)}
    adapter = save_peft(
        tmp_path / "a", {**q, **v, **bias}, target_modules=["q_proj", "v_proj"], bias="lora_only"
    )
    out = merged(base, adapter, tmp_path / "out")
    before, after = (load_file(each / "model.safetensors") for each in (base, out))
    expected = before["attn.in_proj_weight"].astype(np.float64)
    for rows, name, factors in ((slice(0, 4), "q", q), (slice(8, 12), "v", v)):
        stem = f"{WRAPPER}attn.{name}_proj.lora"
        expected[rows] += 2 * factors[f"{stem}_B.weight"] @ factors[f"{stem}_A.weight"]
    assert np.allclose(after["attn.in_proj_weight"], expected, atol=1e-5)
    assert np.array_equal(after["attn.in_proj_bias"][8:], np.arange(4))
    assert np.array_equal(after["attn.in_proj_bias"][:8], before["attn.in_proj_bias"][:8])


def test_one_expert_of_a_stack_is_refused_with_what_transformers_does(tmp_path):
    from tests.helpers.peft_files import pair
    from tests.helpers.peft_files import write_peft as save_peft

    settings = {**TEXT, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = build("MixtralForCausalLM", "MixtralConfig", settings, tmp_path / "hub")
    model.save_pretrained(tmp_path / "model", save_original_format=False)
    module = "model.layers.0.block_sparse_moe.experts.0.w2"
    adapter = save_peft(tmp_path / "a", pair(module, 64, 32), target_modules=["w2"])
    merged(tmp_path / "hub", adapter, tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"makes .*experts.down_proj' by stack") as caught:
        merged(tmp_path / "model", adapter, tmp_path / "other")
    assert "lora-export merge" not in caught.value.hint
