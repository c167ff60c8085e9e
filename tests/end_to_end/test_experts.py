"""Adapters of stacked experts (PEFT's ``target_parameters``) through a whole build."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.running import call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a tiny Mixtral as the model names its parameters, as the hub does, and an adapter."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            max_position_embeddings=256,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "base", save_original_format=False)
    model.save_pretrained(folder / "hub")
    wrapped = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    )  # fmt: skip
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(folder / "adapter")
    return folder


def build(capsys, parts, base, out):
    adapter = f"a={parts / 'adapter'}"
    return call(
        capsys, "merge-and-build", "--base", parts / base, "--adapter", adapter,
        "--out", out, "--no-latency", "--json",
    )  # fmt: skip


def test_merged_experts_are_verified_against_peft(parts, tmp_path, capsys) -> None:
    result = build(capsys, parts, "base", tmp_path / "out")
    assert result.code == 0, result.err
    row = result.document["reports"]["parity"]["graphs"]["a"]
    assert row["verdict"] == "pass"
    assert row["effect"] > 0.1


def test_experts_stored_one_by_one_make_the_same_export(parts, tmp_path, capsys) -> None:
    """The hub's file and the model's own give the same graphs and weights, bit for bit."""
    for base in ("base", "hub"):
        result = build(capsys, parts, base, tmp_path / base)
        assert result.code == 0, result.err
        assert result.document["reports"]["parity"]["graphs"]["a"]["verdict"] == "pass"
    for file in ("base.onnx", "a.onnx", "weights/base.safetensors", "weights/a.safetensors"):
        assert (tmp_path / "base" / file).read_bytes() == (tmp_path / "hub" / file).read_bytes()


def test_an_adapter_of_single_experts_is_refused(parts, tmp_path, capsys) -> None:
    """An adapter of transformers 4: the model has no such modules any more."""
    folder = tmp_path / "old"
    folder.mkdir()
    path = "base_model.model.model.layers.0.block_sparse_moe.experts.1.w1"
    shapes = {"A": (2, 32), "B": (48, 2)}
    factors = {f"{path}.lora_{key}.weight": np.ones(s, np.float32) for key, s in shapes.items()}
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2}
    config["target_modules"] = ["w1"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    result = call(
        capsys, "merge-and-build", "--base", parts / "hub", "--adapter", f"a={folder}",
        "--out", tmp_path / "out", "--no-verify", "--no-latency", "--json",
    )  # fmt: skip
    assert result.code == 4
    assert "experts.1.w1.weight" in result.err
    assert "mlp.experts.gate_up_proj" in result.err
    assert not (tmp_path / "out").exists()
