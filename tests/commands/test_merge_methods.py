"""``merge --verify`` of adapters of other methods than LoRA; what their files may not be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.methods import through_peft
from tests.cli.running import call, stagings
from tests.helpers.methods import edit_config, save_method

if TYPE_CHECKING:
    from pathlib import Path

GENERATION, CLASSIFICATION = "text-generation", "text-classification"
LLAMA = ["q_proj", "down_proj"]

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "loha": ("llama", GENERATION, "LoHaConfig", {"r": 2, "target_modules": LLAMA}),
    "lokr": ("llama", GENERATION, "LoKrConfig", {"r": 2, "target_modules": LLAMA}),
    "ia3": ("gpt2", GENERATION, "IA3Config",
            {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}),
    "adalora": ("gpt2", GENERATION, "AdaLoraConfig",
                {"init_r": 3, "total_step": 9, "target_modules": ["c_attn"]}),
    "vera": ("gpt2", GENERATION, "VeraConfig", {"r": 4, "target_modules": ["c_attn", "c_fc"]}),
    "oft": ("llama", GENERATION, "OFTConfig", {"oft_block_size": 4, "target_modules": LLAMA}),
    "boft": ("bert", CLASSIFICATION, "BOFTConfig",
             {"boft_block_size": 4, "target_modules": ["query", "value"]}),
    "hra": ("llama", GENERATION, "HRAConfig", {"r": 2, "target_modules": LLAMA}),
    "fourierft": ("gpt2", GENERATION, "FourierFTConfig",
                  {"n_frequency": 20, "target_modules": ["c_attn"]}),
    "layer norms": ("bert", CLASSIFICATION, "LNTuningConfig", {"target_modules": ["LayerNorm"]}),
    "hira": ("llama", GENERATION, "HiraConfig", {"r": 2, "target_modules": LLAMA}),
    "road": ("bert", CLASSIFICATION, "RoadConfig",
             {"group_size": 4, "target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "biases": ("bert", CLASSIFICATION, "BeftConfig", {"target_modules": ["query"]}),
}  # fmt: skip


def merge(capsys: Any, base: Path, adapter: Path, out: Path, *more: object) -> Any:
    return call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out, *more)


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=() if case in {"loha", "road"} else pytest.mark.slow) for case in CASES
])  # fmt: skip
def test_a_merge_is_compared_with_peft(case: str, tiny: Any, tmp_path: Path, capsys: Any) -> None:
    kind, task, config, settings = CASES[case]
    base = tiny.base(kind, task)
    adapter = save_method(base, tmp_path / "a", config, task=task, **settings)
    out = tmp_path / "out"
    result = merge(capsys, base, adapter, out, "--verify", "--json", "--strict")
    assert result.code == 0, result.err
    record = result.document["adapter"]
    assert record["tensors_applied"] == record["tensors_total"]
    assert result.document["verification"]["verdict"] == "pass"
    assert result.document["verification"]["effect"] != 0


@pytest.mark.slow
def test_names_that_training_left_are_compared_too(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    kind, task, config, settings = CASES["loha"]
    base = tiny.base(kind, task)
    adapter = save_method(base, tmp_path / "a", config, task=task, **settings)
    path = adapter / "adapter_model.safetensors"
    renamed = {
        f"{name.replace('base_model.model.', 'base_model.model._orig_mod.')}.mine": value
        for name, value in load_file(path).items()
    }
    save_file(renamed, path, {"format": "pt"})
    result = merge(capsys, base, adapter, tmp_path / "out", "--verify", "--strict")
    assert result.code == 0, result.err


def without(name: str) -> Any:
    def edit(tensors: dict[str, np.ndarray], _: Path) -> None:
        key = next(key for key in tensors if name in key)
        del tensors[key]

    return edit


def reshaped(name: str) -> Any:
    def edit(tensors: dict[str, np.ndarray], _: Path) -> None:
        key = next(key for key in tensors if name in key)
        tensors[key] = np.concatenate([tensors[key]] * 2)

    return edit


def not_a_number(tensors: dict[str, np.ndarray], _: Path) -> None:
    next(iter(tensors.values())).reshape(-1)[-1] = np.nan


def mixed(tensors: dict[str, np.ndarray], _: Path) -> None:
    module = next(iter(tensors)).rpartition(".")[0].removesuffix(".oft_R")
    tensors[f"{module}.lora_A.weight"] = np.ones((2, 16), np.float32)
    tensors[f"{module}.lora_B.weight"] = np.ones((16, 2), np.float32)


def setting(**changes: Any) -> Any:
    return lambda _, folder: edit_config(folder, **changes)


DAMAGED: dict[str, tuple[str, Any, str]] = {
    "loha: a factor is missing": ("loha", without("hada_w2_b"), "hada_w2_b is missing"),
    "loha: another rank": ("loha", setting(r=3), "have rank 2, its config says r: 3"),
    "loha: a wrong shape": ("loha", reshaped("hada_w1_a"), "do not fit together"),
    "loha: not a number": ("loha", not_a_number, "holds NaN or infinity"),
    "loha: other targets": ("loha", setting(target_modules=["k_proj"]), "does not target"),
    "loha: no alpha": ("loha", setting(alpha=None), "its config has no alpha"),
    "loha: alpha as text": ("loha", setting(alpha="16"), "alpha"),
    "loha: of another method": ("loha", setting(peft_type="LOKR"), "LOKR, and no tensors of it"),
    "lokr: a factor is missing": ("lokr", without("lokr_w2_a"), "lokr_w2_a is missing"),
    "lokr: another factor": ("lokr", setting(decompose_factor=2), "decompose_factor: 2"),
    "ia3: inputs as outputs": ("ia3", setting(feedforward_modules=[]), "number per output"),
    "ia3: a wrong length": ("ia3", reshaped("ia3_l"), "has 192 outputs"),
    "adalora: other ranks": ("adalora", setting(init_r=4), "config says init_r: 4"),
    "adalora: no values": ("adalora", without("lora_E"), "lora_E is missing"),
    "vera: no projection": ("vera", without("vera_A"), "vera_A is missing"),
    "vera: another rank": ("vera", setting(r=3), "are not those of r: 3"),
    "oft: another block size": ("oft", setting(oft_block_size=2), "oft_block_size is 2"),
    "oft: shared blocks": ("oft", setting(block_share=True), "block_share: True"),
    "oft: with tensors of LoRA": ("oft", mixed, "OFT and tensors of LoRA"),
    "boft: another block size": ("boft", setting(boft_block_size=2), "boft_block_size is 2"),
    "boft: no scales": ("boft", without("boft_s"), "boft_s is missing"),
    "hra: another rank": ("hra", setting(r=4), "config says r: 4"),
    "fourierft: other frequencies": ("fourierft", setting(n_frequency=9), "n_frequency: 9"),
    "hira: a factor is missing": ("hira", without("hira_A"), "hira_A is missing"),
    "hira: another rank": ("hira", setting(r=3), "size mismatch"),
    "hira: not a number": ("hira", not_a_number, "holds NaN or infinity"),
    "layer norms: a wrong shape": ("layer norms", reshaped("ln_tuning"), "do not fit"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_adapter_is_refused(case: str, tiny: Any, tmp_path: Path, capsys: Any) -> None:
    method, edit, words = DAMAGED[case]
    kind, task, config, settings = CASES[method]
    base = tiny.base(kind, task)
    adapter = save_method(base, tmp_path / "a", config, task=task, **settings)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors, adapter)
    save_file(tensors, path, {"format": "pt"})
    result = merge(capsys, base, adapter, tmp_path / "out", "--json")
    assert result.code == 3, result.err
    error = json.loads(result.out)["error"]
    assert words in " ".join([error["message"], *error.get("items", [])])
    assert stagings(tmp_path) == []
    assert not (tmp_path / "out").exists()


def test_a_method_that_peft_merges_needs_peft(
    tiny: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, task, config, settings = CASES["hira"]
    base = tiny.base(kind, task)
    adapter = save_method(base, tmp_path / "a", config, task=task, **settings)
    monkeypatch.setattr(through_peft.importlib.util, "find_spec", lambda _: None)
    result = merge(capsys, base, adapter, tmp_path / "out", "--json")
    assert result.code == 7, result.err
    assert "not installed: torch, peft" in json.loads(result.out)["error"]["message"]
    assert not (tmp_path / "out").exists()


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "drawn projections": ("RandLoraConfig", {"r": 2, "save_projection": False}, {},
                          "save_projection: false"),
    "weight and bias as one": ("AdamssConfig", {"r": 3, "num_subspaces": 2}, {}, "as one"),
    "a method without a merge": ("LilyConfig", {"r": 2}, {}, "it routes between updates"),
    "an unknown method": ("HiraConfig", {"r": 2}, {"peft_type": "NEW"}, "which is not merged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_merge_is_refused(case: str, tiny: Any, tmp_path: Path, capsys: Any) -> None:
    config, settings, changes, words = REFUSED[case]
    base = tiny.base("bert", CLASSIFICATION)
    adapter = save_method(base, tmp_path / "a", config, task=CLASSIFICATION,
                          target_modules=["query"], **settings)  # fmt: skip
    edit_config(adapter, **changes)
    result = merge(capsys, base, adapter, tmp_path / "out", "--json")
    assert result.code == 4, result.err
    assert words in json.loads(result.out)["error"]["message"]
    assert stagings(tmp_path) == []
