"""PiSSA and OLoRA adapters as PEFT makes them: merged into their residual base, and no other."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from tests.cli.exports import manifest_of, report
from tests.cli.running import call
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-generation"
TARGETS = ["q_proj", "k_proj", "down_proj"]


def train(
    tiny: TinyModels,
    folder: Path,
    start: str,
    *,
    kind: str = "llama",
    steps: int = 5,
    **settings: Any,
) -> tuple[Path, Path, Path, dict[str, np.ndarray]]:
    """Train an adapter; return the original base, the residual one, the adapter, PEFT's merge."""
    base = tiny.base(kind, TASK)
    torch.manual_seed(1)
    model = load_tiny(base, TASK)
    config = LoraConfig(
        r=4, init_lora_weights=start, **{"target_modules": TARGETS, "lora_alpha": 4, **settings}
    )
    wrapped = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.randint(3, 150, (4, 24))
    for _ in range(steps):
        wrapped(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.save_pretrained(folder / "adapter")
    shutil.copytree(base, folder / "residual")
    held = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value.numpy()
        for name, value in wrapped.state_dict().items()
        if "lora_" not in name
    }
    stored = load_file(base / "model.safetensors")
    save_file({name: held[name] for name in stored}, folder / "residual" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    merged = {k: v.numpy() for k, v in wrapped.merge_and_unload().state_dict().items()}
    return base, folder / "residual", folder / "adapter", merged


CASES = [
    ("pissa", {}),
    ("pissa", {"lora_alpha": 8, "use_rslora": True}),
    ("pissa_niter_4", {"lora_alpha": 2}),
    ("pissa", {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("olora", {}),
    ("olora", {"lora_alpha": 8}),
]


@pytest.mark.parametrize(("start", "settings"), CASES)
def test_the_residual_base_is_taken_and_the_original_refused(
    start, settings, tiny, tmp_path, capsys
) -> None:
    base, residual, adapter, expected = train(tiny, tmp_path, start, **settings)
    out = tmp_path / "out"
    done = call(capsys, "merge", "--base", residual, "--adapter", f"x={adapter}", "--out", out)
    assert done.code == 0, done.err
    for name, value in load_file(out / "model.safetensors").items():
        error = np.linalg.norm(value - expected[name])
        assert error <= 1e-6 * np.linalg.norm(expected[name]), name
    refused = call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out",
                   tmp_path / "no")  # fmt: skip
    assert refused.code == 4
    assert "is the base before that" in refused.err
    assert "path_initial_model_for_weight_conversion" in refused.err
    assert not (tmp_path / "no").exists()


def test_a_foreign_base_is_undecided(tiny, tmp_path, capsys) -> None:
    _, _, adapter, _ = train(tiny, tmp_path, "pissa")
    other = tiny.base("llama", TASK, seed=5)
    refused = call(capsys, "merge", "--base", other, "--adapter", f"x={adapter}", "--out",
                   tmp_path / "no")  # fmt: skip
    assert refused.code == 4
    assert "is open" in refused.err
    assert "unexplained" in refused.err


def test_an_export_of_the_residual_base_is_verified_and_added_to(tiny, tmp_path, capsys) -> None:
    base, residual, adapter, _ = train(tiny, tmp_path, "pissa")
    out = tmp_path / "out"
    done = call(capsys, "merge-and-build", "--base", residual, "--adapter", f"x={adapter}",
                "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    assert report(out, "parity")["graphs"]["x"]["verdict"] == "pass"
    assert call(capsys, "add", out, "--adapter", f"y={adapter}").code == 0
    assert set(manifest_of(out)["adapters"]) == {"x", "y"}
    plain = tmp_path / "plain"
    assert call(capsys, "merge-and-build", "--base", base, "--out", plain, "--no-verify").code == 0
    refused = call(capsys, "add", plain, "--adapter", f"x={adapter}")
    assert refused.code == 4
    assert "is the base before that" in refused.err
    assert manifest_of(plain)["adapters"] == {}


def test_converted_with_its_residual_base_it_is_a_plain_adapter(tiny, tmp_path, capsys) -> None:
    base, residual, adapter, _ = train(tiny, tmp_path, "olora", lora_alpha=8)
    convert = ("adapter", "convert", adapter, "--to", "peft", "--out", tmp_path / "new")
    alone = call(capsys, *convert)
    assert (alone.code, "--base" in alone.err) == (2, True)
    assert call(capsys, *convert, "--base", base).code == 4
    assert call(capsys, *convert, "--base", residual).code == 0
    again = ("merge", "--adapter", f"x={tmp_path / 'new'}", "--out", tmp_path / "m")
    assert call(capsys, *again, "--base", residual).code == 0
    refused = call(capsys, *again[:-1], tmp_path / "n", "--base", base)
    assert refused.code == 3
    assert "is not the base that adapter" in refused.err


@pytest.mark.parametrize("flags", [("--scale", "x=0.5"), ("--drop", "*layers.0*q_proj*")])
def test_a_part_of_it_is_refused(flags, tiny, tmp_path, capsys) -> None:
    _, residual, adapter, _ = train(tiny, tmp_path, "pissa", steps=0)
    refused = call(capsys, "merge", "--base", residual, "--adapter", f"x={adapter}", "--out",
                   tmp_path / "no", *flags)  # fmt: skip
    assert refused.code == 4
    assert "holds a part of its base" in refused.err


def test_two_of_them_are_not_combined(tiny, tmp_path, capsys) -> None:
    _, residual, adapter, _ = train(tiny, tmp_path, "pissa", steps=0)
    refused = call(capsys, "merge", "--base", residual, "--adapter", f"x={adapter}", "--adapter",
                   f"y={adapter}", "--combine", "linear", "--out", tmp_path / "no")  # fmt: skip
    assert refused.code == 4
    assert "count twice" in refused.err
