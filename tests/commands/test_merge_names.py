"""``merge`` finds what an adapter changes under whatever names it and the base have.

The oracle is unmerged PEFT for outputs, PEFT's own merge for parameters, both in transformers.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.fit import header_parameters
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.peft_write import write_peft
from lora_export.adapters.naming import to_checkpoint_names
from lora_export.adapters.resolve import Names
from lora_export.commands.inspect.inspect_path import inspect_pair
from lora_export.commands.merge import merge_checkpoint
from lora_export.commands.recipe import AdapterSpec
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.weights.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDS = [[5, 9, 17, 33, 64, 2], [1, 8, 3, 90, 100, 7]]
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
ENCODER: dict[str, Any] = {
    key: value for key, value in TEXT.items() if key != "num_key_value_heads"
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
LLAVA: dict[str, Any] = {
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
    "image_token_index": 120,
}

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


def build(class_name: str, config_class: str, settings: dict[str, Any], folder: Path) -> Any:
    """Return a model with random parameters, saved in `folder` under the hub's names."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return model


def train(model: Any, folder: Path, **settings: Any) -> Any:
    """Return `model` with a random adapter, saved in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.eval().save_pretrained(folder)
    return wrapped


def merged(base: Path, adapter: Path, out: Path, **settings: Any) -> Path:
    """Merge, after `inspect` has found that the adapter fits."""
    fit = inspect_pair(base, adapter).fit
    assert fit.fits, fit.mismatches
    spec = AdapterSpec(source=str(adapter), name="a", **settings)
    merge_checkpoint(base, [spec], out)
    return out


def outputs(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits


def relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


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


def renamed(folder: Path, rename: Callable[[str], str]) -> Path:
    """Rename the tensors of an adapter."""
    file = folder / "adapter_model.safetensors"
    save_file({rename(key): value for key, value in load_file(file).items()}, file)
    return folder


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


def test_magnitudes_of_some_rows_only_are_refused(twins, tmp_path):
    folder, classes = twins
    model = classes["llama"].from_pretrained(folder / "llama")
    train(model, tmp_path / "a", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(UnsupportedError, match=r"DoRA .* some of the rows of .*qkv_proj"):
        merged(folder / "phi3", tmp_path / "a", tmp_path / "out")


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
    names = Names(header_parameters(checkpoint.tensors), "")
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


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Return a folder with a Llama and an adapter, and what the two give in PEFT."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    model = build("LlamaForCausalLM", "LlamaConfig", TEXT, folder / "base")
    trained = train(
        LlamaForCausalLM.from_pretrained(folder / "base"),
        folder / "a",
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    assert relative(outputs(model), outputs(trained)) > 1e-2
    return folder, outputs(trained), trained.state_dict()


def test_the_state_dict_of_a_peft_model_is_the_model(llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, state = llama
    raw = shutil.copytree(folder / "a", tmp_path / "a")
    save_file({k: v.numpy() for k, v in state.items()}, raw / "adapter_model.safetensors")
    out = merged(folder / "base", raw, tmp_path / "out")
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), expected) < 2e-6


def test_a_value_head_is_dropped_on_demand(llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, _ = llama
    adapter = shutil.copytree(folder / "a", tmp_path / "a")
    file = adapter / "adapter_model.safetensors"
    tensors = {f"pretrained_model.{key}": value for key, value in load_file(file).items()}
    save_file({**tensors, "v_head.summary.weight": np.ones((1, 32), np.float32)}, file)
    fit = inspect_pair(folder / "base", adapter).fit
    assert not fit.fits
    assert "v_head.summary.weight: the value head of TRL" in fit.mismatches[0]
    spec = AdapterSpec(source=str(adapter), name="a")
    with pytest.raises(UnsupportedError, match="value head of TRL"):
        merge_checkpoint(folder / "base", [spec], tmp_path / "out")
    spec = AdapterSpec(source=str(adapter), name="a", drop=["v_head.*"])
    merge_checkpoint(folder / "base", [spec], tmp_path / "out")
    found = outputs(LlamaForCausalLM.from_pretrained(tmp_path / "out"))
    assert relative(found, expected) < 2e-6


def test_a_leftover_quantization_config_is_not_passed_on(llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, _ = llama
    base = shutil.copytree(folder / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    out = merged(base, folder / "a", tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), expected) < 2e-6


def test_empty_tensors_of_zero_3_are_refused_by_what_leaves_them(llama, tmp_path):
    folder, _, _ = llama
    adapter = shutil.copytree(folder / "a", tmp_path / "a")
    file = adapter / "adapter_model.safetensors"
    save_file({key: value[:0] for key, value in load_file(file).items()}, file)
    with pytest.raises(AdapterError) as caught:
        read_adapter(adapter, name="a", source="a")
    assert "ZeRO-3" in caught.value.hint


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("base_model.model.", "base_model.model.model."),
        lambda key: key.replace("base_model.model.model.", "base_model.model."),
        lambda key: key.replace("base_model.model.", "base_model.model.module."),
    ],
    ids=["one model. more", "one model. less", "module."],
)
def test_a_missing_or_extra_model_is_seen_through(rename, llama, tmp_path):
    from transformers import LlamaForCausalLM

    folder, expected, _ = llama
    adapter = renamed(shutil.copytree(folder / "a", tmp_path / "a"), rename)
    out = merged(folder / "base", adapter, tmp_path / "out")
    assert relative(outputs(LlamaForCausalLM.from_pretrained(out)), expected) < 2e-6


def test_an_extra_model_before_a_base_without_the_name_of_the_bare_model(tmp_path):
    from transformers import BertForSequenceClassification

    build("BertModel", "BertConfig", ENCODER, tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    settings = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    trained = train(model, tmp_path / "a", **settings)
    renamed(tmp_path / "a", lambda key: key.replace("base_model.model.", "base_model.model.model."))
    out = merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    found = outputs(BertForSequenceClassification.from_pretrained(out))
    assert relative(found, outputs(trained)) < 2e-6


@pytest.fixture
def run(tmp_path):
    """Return a base, and a trainer's run with two checkpoints of an adapter."""
    from tests.helpers.handmade import save_adapter, save_checkpoint

    for step in (500, 1000):
        save_adapter(tmp_path / "run" / f"checkpoint-{step}")
    save_adapter(tmp_path / "Llama-3.1-8B-LoRA")
    return save_checkpoint(tmp_path / "base"), tmp_path / "run"


def test_a_folder_of_several_adapters_lists_them_and_subfolder_picks_one(run, capsys):
    from tests.cli.running import call

    base, folder = run
    command = ("merge", "--base", base, "--adapter", folder, "--out", folder / "out")
    refused = call(capsys, *command)
    assert refused.code == 3
    assert "'checkpoint-500', 'checkpoint-1000' (the newest)" in refused.err
    assert "--subfolder checkpoint-1000" in refused.err
    missing = call(capsys, *command, "--subfolder", "checkpoint-7")
    assert missing.code == 3
    assert "'checkpoint-500'" in missing.err
    assert call(capsys, *command, "--subfolder", "checkpoint-500").code == 0
    assert call(capsys, "inspect", base, folder, "--subfolder", "checkpoint-500").code == 0
    listed = call(capsys, "inspect", folder)
    assert listed.code == 3
    assert "'checkpoint-500'" in listed.err


def test_a_folder_of_checkpoints_lists_them(run, capsys):
    from tests.cli.running import call

    base, folder = run
    command = ("merge", "--base", base.parent, "--adapter", folder, "--out", folder / "out")
    refused = call(capsys, *command)
    assert refused.code == 3
    assert f"Choose one: --base {base}" in refused.err


def test_a_name_follows_from_the_folders(run, capsys):
    from tests.cli.running import call

    base, folder = run
    adapter, out = folder.parent / "Llama-3.1-8B-LoRA", folder.parent / "out"
    done = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert done.code == 0
    assert "llama-3-1-8b-lora: rank 2" in done.out
    reserved = adapter.rename(adapter.parent / "Model")
    refused = call(capsys, "merge", "--base", base, "--adapter", reserved, "--out", out / "new")
    assert refused.code == 3
    assert "'model' is reserved" in refused.err
    assert "--adapter NAME=PATH" in refused.err


def test_a_file_has_no_subfolder(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="is a file: it has no folder 'a'"):
        read_adapter(tmp_path / "x.safetensors" / "a", name="x", source="x.safetensors")
