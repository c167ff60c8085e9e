"""A base and an adapter with the hub's names, through a whole build."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.running import call

pytestmark = pytest.mark.slow

SAVED = ("base.onnx", "a.onnx", "weights/base.safetensors", "weights/a.safetensors")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a GPT-NeoX as the model and as the hub names it, and an adapter in both forms."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("names")
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "model", save_original_format=False)
    model.save_pretrained(folder / "hub")
    targets = ["query_key_value", "lm_head"]
    wrapped = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)
    )  # fmt: skip
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(folder / "new", save_embedding_layers=False)
    (folder / "old").mkdir()
    state = load_file(folder / "new" / "adapter_model.safetensors")
    old = {name.replace("lm_head", "embed_out"): value for name, value in state.items()}
    assert set(old) != set(state)
    save_file(old, folder / "old" / "adapter_model.safetensors")
    config = json.loads((folder / "new" / "adapter_config.json").read_text())
    config["target_modules"] = ["query_key_value", "embed_out"]
    (folder / "old" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def expected(parts, tmp_path_factory):
    """Return the export of the model's own names."""
    from lora_export.commands.build import merge_and_build
    from lora_export.commands.recipe import Recipe
    from lora_export.core.adapter_spec import AdapterSpec

    out = tmp_path_factory.mktemp("expected") / "out"
    merge_and_build(
        Recipe(
            base=str(parts / "model"),
            adapters=[AdapterSpec(source=str(parts / "new"), name="a")],
            output=str(out),
            verify={"enabled": False},
            latency={"enabled": False},
        )
    )
    return out


def same_files(one, other) -> bool:
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in SAVED)


def test_old_names_make_the_same_export_and_it_is_verified(
    parts, expected, tmp_path, capsys
) -> None:
    result = call(
        capsys, "merge-and-build", "--base", parts / "hub", "--adapter", f"a={parts / 'old'}",
        "--out", tmp_path / "out", "--no-latency", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.document["reports"]["parity"]["graphs"]["a"]["verdict"] == "pass"
    assert same_files(tmp_path / "out", expected)
    again = call(capsys, "verify", tmp_path / "out", "--base", parts / "hub", "--json")
    assert again.code == 0, again.err
    assert again.document["reports"]["parity"]["graphs"]["a"]["verdict"] == "pass"


def test_an_adapter_of_old_names_is_added_to_any_export(parts, expected, capsys) -> None:
    result = call(capsys, "add", expected, "--adapter", f"b={parts / 'old'}", "--json")
    assert result.code == 0, result.err
    merged = [load_file(expected / "weights" / f"{name}.safetensors") for name in "ab"]
    assert merged[0].keys() == merged[1].keys()
    assert all((merged[0][name] == merged[1][name]).all() for name in merged[0])


def test_an_adapter_of_old_names_is_merged_at_load(parts, expected) -> None:
    from lora_export.runtime import open_export

    rows = np.arange(2, 12).reshape(2, 5)
    with open_export(expected, adapters={"old": parts / "old"}) as session:
        given = {"input_ids": rows, "attention_mask": np.ones_like(rows),
                 "position_ids": np.tile(np.arange(5), (2, 1))}  # fmt: skip
        feeds = {each.name: given[each.name] for each in session.inputs if each.name in given}
        cache = {
            each.name: np.zeros((2, each.axes[1], 0, each.axes[3]), np.float32)
            for each in session.inputs
            if each.name not in given
        }
        assert session.ways("old") == ("merge_at_load",)
        found = [session.run({**feeds, **cache}, adapter=name)["logits"] for name in ("a", "old")]
    np.testing.assert_array_equal(found[0], found[1])


def test_an_adapter_of_q_k_v_is_verified_on_a_model_that_fuses_them(tmp_path, capsys) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes)).save_pretrained(tmp_path / "b")
    twin = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    targets = ["q_proj", "v_proj", "up_proj"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=targets, rank_pattern={"q_proj": 3}
    )
    wrapped = get_peft_model(twin, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(tmp_path / "a")
    for mode in ("merged", "batched"):
        result = call(
            capsys, "merge-and-build", "--base", tmp_path / "b", "--adapter", tmp_path / "a",
            "--out", tmp_path / mode, "--mode", mode, "--no-latency", "--no-cache", "--json",
        )  # fmt: skip
        assert result.code == 0, result.err
        graphs = result.document["reports"]["parity"]["graphs"]
        assert {row["verdict"] for row in graphs.values()} == {"pass"}
