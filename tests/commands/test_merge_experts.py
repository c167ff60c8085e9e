"""``merge`` of updates of stacked experts (``target_parameters``): PEFT is the oracle."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.core.merge_record import read_record
from tests.cli.running import call
from tests.helpers.experts import expert_adapter, expert_base, load_expert_model

if TYPE_CHECKING:
    from pathlib import Path

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
STACKED = {"save_original_format": False}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral, one by one": ("mixtral", {}, {"parameters": BOTH}),
    "mixtral, stacked": ("mixtral", STACKED, {"parameters": BOTH}),
    "mixtral, outer only": ("mixtral", {}, {"parameters": ["experts.down_proj"]}),
    "mixtral, inner only": ("mixtral", {}, {"parameters": ["gate_up_proj"]}),
    "mixtral, router": (
        "mixtral",
        {},
        {"parameters": ["mlp.gate.weight", BOTH[1]], "target_modules": ["q_proj", "o_proj"]},
    ),
    "mixtral, all linear": ("mixtral", {}, {"parameters": [], "target_modules": "all-linear"}),
    "mixtral, parameters with and without their module": (
        "mixtral",
        {},
        {"parameters": ["gate.weight", "gate_up_proj", "down_proj"], "target_modules": ["q_proj"]},
    ),
    "qwen3, patterns": (
        "qwen3-moe",
        {},
        {
            "parameters": BOTH,
            "rank_pattern": {"experts.down_proj": 3, r"layers.1.mlp.experts.gate_up_proj": 1},
            "alpha_pattern": {r".*\.1\..*gate_up_proj": 7},
            "use_rslora": True,
        },
    ),
    "qwen3, square weight of a linear layer": (
        "qwen3-moe",
        {"max_shard_size": "12KB"},
        {"parameters": ["q_proj.weight", "o_proj.weight", *BOTH]},
    ),
    "gpt-oss": ("gpt-oss", {}, {"parameters": BOTH}),
    "gpt-oss, square": ("gpt-oss-square", {}, {"parameters": BOTH}),
    "gpt-oss, biases": (
        "gpt-oss",
        {},
        {"parameters": [*BOTH, "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"]},
    ),
}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base that stores its experts one by one, and an adapter ``a`` of both."""
    folder = tmp_path_factory.mktemp("mixtral")
    expert_adapter(expert_base("mixtral", folder / "base"), folder / "a", parameters=BOTH)
    return folder


def copied(parts: Path, folder: Path) -> Path:
    """Copy base and adapter into `folder`; return the base."""
    shutil.copytree(parts, folder, dirs_exist_ok=True)
    return folder / "base"


@pytest.mark.parametrize("case", CASES)
def test_merged_experts_are_those_of_peft(case: str, tmp_path: Path, capsys: Any) -> None:
    import torch

    kind, saving, settings = CASES[case]
    base = expert_base(kind, tmp_path / "base", **saving)
    wanted = expert_adapter(base, tmp_path / "adapter", **settings)
    result = call(capsys, "merge", "--base", base, "--adapter", f"x={tmp_path / 'adapter'}",
                  "--out", tmp_path / "out", "--json")  # fmt: skip
    assert result.code == 0, result.err
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    row = result.document["adapter"]
    assert row["tensors_applied"] == row["tensors_total"] == len(held)
    merged = load_expert_model(tmp_path / "out")
    found = {name: value.double().numpy() for name, value in merged.state_dict().items()}
    assert found.keys() | {""} == wanted.keys()
    for name, value in found.items():
        error = np.linalg.norm(value - wanted[name])
        assert error <= 1e-6 * max(np.linalg.norm(wanted[name]), 1e-30), name
    with torch.no_grad():
        logits = merged(torch.arange(3, 15)[None]).logits
    torch.testing.assert_close(logits, wanted[""], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_experts_are_the_rounded_float64_result(dtype: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch_file

    from lora_export.commands.merge import merge_checkpoint
    from lora_export.core.adapter_spec import AdapterSpec

    base = expert_base("mixtral", tmp_path / "base", **STACKED)
    wanted = expert_adapter(base, tmp_path / "adapter", parameters=BOTH)
    spec = AdapterSpec(name="a", source=str(tmp_path / "adapter"))
    merge_checkpoint(base, [spec], tmp_path / "out", dtype=dtype)
    stored = load_torch_file(tmp_path / "out" / "model.safetensors")
    for name in (name for name in stored if "experts" in name):
        exact = torch.from_numpy(wanted[name]).to(getattr(torch, dtype))
        ours = stored[name]
        moved = (ours != exact).double().mean()
        assert moved < 1e-3, name  # float32 arithmetic may fall on the other side of a tie
        torch.testing.assert_close(ours, exact, rtol=1e-2, atol=0)


def test_blocks_end_anywhere_in_an_expert(tmp_path: Path, monkeypatch: Any) -> None:
    """One to three rows at a time, which straddle the experts' borders, or all at once."""
    from lora_export.commands.merge import merge_checkpoint
    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.weights import merge_plan as plans

    base = expert_base("gpt-oss", tmp_path / "base")
    expert_adapter(base, tmp_path / "adapter", parameters=BOTH)
    spec = AdapterSpec(name="a", source=str(tmp_path / "adapter"))
    written = []
    for block_bytes in (64, 7 * 24 * 4, 1 << 20):
        monkeypatch.setattr(plans, "BLOCK_BYTES", block_bytes)
        out = tmp_path / str(block_bytes)
        merge_checkpoint(base, [spec], out)
        written.append(load_file(out / "model.safetensors"))
    for name, value in written[-1].items():
        for other in written[:-1]:
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-7)


def test_what_is_dropped_by_its_stacked_name(mixtral: Path, tmp_path: Path, capsys: Any) -> None:
    base = copied(mixtral, tmp_path)
    result = call(capsys, "merge", "--base", base, "--adapter", tmp_path / "a", "--drop",
                  "*experts.gate_up_proj", "--out", tmp_path / "out", "--json")  # fmt: skip
    assert result.code == 0, result.err
    changed = set(result.document["tensors"])
    assert changed == {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"
        for layer in range(2)
        for expert in range(3)
    }
    assert len(result.document["adapter"]["dropped"]) == 2


def test_inspect_and_convert_know_them(tmp_path: Path, capsys: Any) -> None:
    base = expert_base("mixtral", tmp_path / "base")
    settings: dict[str, Any] = {"parameters": BOTH, "rank_pattern": {"down_proj": 3}}
    wanted = expert_adapter(base, tmp_path / "a", **settings)
    shown = call(capsys, "inspect", base, tmp_path / "a", "--json")
    assert shown.code == 0, shown.err
    assert shown.document["fit"]["fits"]
    assert shown.document["fit"]["matched"] == shown.document["fit"]["tensors"] == 8
    patterns = {row["pattern"]: row["ranks"] for row in shown.document["adapter"]["modules"]}
    assert patterns == {
        "model.layers.*.mlp.experts.gate_up_proj": [2],
        "model.layers.*.mlp.experts.down_proj": [3],
    }
    converted = call(capsys, "adapter", "convert", tmp_path / "a", "--to", "peft", "--base", base,
                     "--out", tmp_path / "b")  # fmt: skip
    assert converted.code == 0, converted.err
    model = peft_merged(base, tmp_path / "b")
    for name, value in model.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-6, atol=1e-9)


def peft_merged(base: Path, adapter: Path) -> dict[str, Any]:
    import peft

    from tests.helpers.builds import model_values

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks for its patterns among modules only
        model = peft.PeftModel.from_pretrained(load_expert_model(base), str(adapter))
    return model_values(model.double().merge_and_unload())


@pytest.mark.parametrize("to", ["onnx_adapter", "edge-llm"])
def test_formats_without_a_place_for_them_refuse(
    mixtral: Path, to: str, tmp_path: Path, capsys: Any
) -> None:
    copied(mixtral, tmp_path)
    out = tmp_path / ("b.onnx_adapter" if to == "onnx_adapter" else "b")
    result = call(capsys, "adapter", "convert", tmp_path / "a", "--to", to, "--out", out)
    assert result.code == 4
    assert "bare parameter" in result.message
    assert "experts.gate_up_proj" in result.message
    assert not out.exists()


def test_combining_them_is_refused(mixtral: Path, tmp_path: Path, capsys: Any) -> None:
    base = copied(mixtral, tmp_path)
    result = call(capsys, "merge", "--base", base, "--adapter", f"a={tmp_path / 'a'}", "--adapter",
                  f"b={tmp_path / 'a'}", "--combine", "cat", "--out", tmp_path / "o")  # fmt: skip
    assert result.code == 4
    assert "target_parameters" in result.message


def test_experts_stored_in_an_unknown_way_are_refused(
    mixtral: Path, tmp_path: Path, capsys: Any
) -> None:
    base = copied(mixtral, tmp_path)
    path = base / "model.safetensors"
    values = {name.replace("block_sparse_moe.experts.", "mlp.experts.").replace(".w", ".linear_"): v
              for name, v in load_file(path).items()}  # fmt: skip
    save_file(values, path, {"format": "pt"})
    result = call(capsys, "merge", "--base", base, "--adapter", tmp_path / "a", "--out",
                  tmp_path / "o")  # fmt: skip
    assert result.code == 4
    assert "save_original_format=False" in result.message
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("experts", [2, 4])
def test_another_count_of_experts_does_not_fit(
    mixtral: Path, experts: int, tmp_path: Path, capsys: Any
) -> None:
    base = copied(mixtral, tmp_path)
    path = tmp_path / "a" / "adapter_model.safetensors"
    values = {}
    for name, value in load_file(path).items():
        rows = np.resize(value, (2 * experts, value.shape[1]))
        columns = np.resize(value, (value.shape[0], 2 * experts))
        values[name] = rows if "lora_A" in name else columns
    save_file(values, path)
    result = call(capsys, "merge", "--base", base, "--adapter", tmp_path / "a", "--out",
                  tmp_path / "o")  # fmt: skip
    assert result.code == 3
    assert f"{experts} experts" in result.message


def test_the_record_names_each_stored_matrix(tmp_path: Path, capsys: Any) -> None:
    base = expert_base("qwen3-moe", tmp_path / "base")
    expert_adapter(base, tmp_path / "a", parameters=BOTH)
    assert call(capsys, "merge", "--base", base, "--adapter", tmp_path / "a", "--out",
                tmp_path / "out").code == 0  # fmt: skip
    record = read_record(tmp_path / "out")
    assert len(record.tensors) == 2 * 5 * 3
    assert record.adapter.rank == 2
    assert all(row.relative_error is not None for row in record.tensors.values())
    back = call(capsys, "merge", "--unmerge", tmp_path / "out", "--base", base, "--out",
                tmp_path / "back")  # fmt: skip
    assert back.code == 0, back.err


def test_config_that_contradicts_the_tensors(mixtral: Path, tmp_path: Path, capsys: Any) -> None:
    base = copied(mixtral, tmp_path)
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    for edit, word in (
        ({"target_parameters": BOTH[:1]}, "2 update"),
        ({"target_parameters": [*BOTH, "mlp.experts.w1"]}, "2 update"),
        ({"target_parameters": [BOTH[0], "mlp.experts.mine"]}, "mine"),
        ({"target_parameters": [7]}, "7 is not text"),
        ({"r": 4}, "rank 4"),
    ):
        path.write_text(json.dumps({**config, **edit}))
        result = call(capsys, "merge", "--base", base, "--adapter", tmp_path / "a", "--out",
                      tmp_path / "o")  # fmt: skip
        assert result.code in {3, 4}
        assert word in result.message, result.message
