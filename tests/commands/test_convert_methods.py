"""``adapter convert --as-rank``: adapters of other methods as LoRA, with what that loses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.running import call, stagings
from tests.helpers.methods import save_method

if TYPE_CHECKING:
    from pathlib import Path

GENERATION = "text-generation"
LLAMA = ["q_proj", "down_proj"]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "loha": ("llama", "LoHaConfig", {"r": 2, "target_modules": LLAMA}),
    "oft": ("llama", "OFTConfig", {"oft_block_size": 4, "target_modules": LLAMA}),
    "ia3": ("gpt2", "IA3Config",
            {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}),
    "hira": ("llama", "HiraConfig", {"r": 2, "target_modules": LLAMA}),
}  # fmt: skip


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def merged(capsys: Any, base: Path, adapter: Path, out: Path, *more: object) -> Any:
    result = call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out, *more)
    assert result.code == 0, result.err
    return tensors_in(out)


def convert(capsys: Any, adapter: Path, out: Path, *more: object) -> Any:
    return call(capsys, "adapter", "convert", adapter, "--to", "peft", "-o", out, "--json", *more)


@pytest.mark.parametrize("case", CASES)
def test_the_conversion_is_the_best_of_its_rank(
    case: str, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    kind, config, settings = CASES[case]
    base = tiny.base(kind, GENERATION)
    adapter = save_method(base, tmp_path / "a", config, task=GENERATION, **settings)
    result = convert(capsys, adapter, tmp_path / "lora", "--base", base, "--as-rank", 3)
    assert result.code == 0, result.err
    own, lora = (
        merged(capsys, base, folder, tmp_path / name)
        for name, folder in (("m", adapter), ("n", tmp_path / "lora"))
    )
    before = tensors_in(base)
    losses = result.document["losses"]
    assert losses
    for name in before:
        change = own[name].astype(np.float64) - before[name]
        found = lora[name].astype(np.float64) - before[name]
        if name not in losses:
            np.testing.assert_allclose(found, change, atol=1e-6)
            continue
        values = np.linalg.svd(change, compute_uv=False)
        best = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())
        assert losses[name] == pytest.approx(best, rel=1e-4)
        loss = np.linalg.norm(change - found) / np.linalg.norm(change)
        assert loss == pytest.approx(best, rel=1e-3)


@pytest.mark.slow
def test_a_converted_adapter_is_one_of_lora(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    kind, config, settings = CASES["ia3"]
    base = tiny.base(kind, GENERATION)
    adapter = save_method(base, tmp_path / "a", config, task=GENERATION, **settings)
    result = convert(capsys, adapter, tmp_path / "lora", "--base", base, "--as-rank", 96)
    assert result.code == 0, result.err
    assert max(result.document["losses"].values()) < 1e-5
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA"
    merged(capsys, base, tmp_path / "lora", tmp_path / "m", "--verify", "--strict")


def test_products_need_no_rank(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    base = tiny.base("gpt2", GENERATION)
    adapter = save_method(base, tmp_path / "a", "VeraConfig", r=4, target_modules=["c_attn"])
    result = convert(capsys, adapter, tmp_path / "lora", "--base", base)
    assert result.code == 0, result.err
    assert set(result.document["losses"].values()) == {0.0}
    first, second = (
        merged(capsys, base, folder, tmp_path / name)
        for name, folder in (("m", adapter), ("n", tmp_path / "lora"))
    )
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--as-rank", 3), "needs its base"),
        (("BASE",), "are no products"),
        (("BASE", "--as-rank", 0), "0"),
    ],
)
def test_what_is_missing_is_named(
    more: tuple[object, ...], words: str, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    adapter = save_method(base, tmp_path / "a", "LoHaConfig", r=2, target_modules=LLAMA)
    given = [part for each in more for part in (("--base", base) if each == "BASE" else (each,))]
    result = convert(capsys, adapter, tmp_path / "lora", *given)
    assert result.code == 2, result.err
    assert words in result.err + result.out
    assert stagings(tmp_path) == []


def test_a_rank_is_refused_where_the_adapter_has_one(
    tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    adapter = tiny.adapter(base, task=GENERATION)
    result = convert(capsys, adapter, tmp_path / "lora", "--base", base, "--as-rank", 3)
    assert result.code == 2
    assert "has low-rank updates already" in json.loads(result.out)["error"]["message"]


@pytest.mark.parametrize("mode", ["swappable", "batched"])
def test_a_graph_for_several_adapters_names_the_conversion(
    mode: str, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    adapter = save_method(base, tmp_path / "a", "LoHaConfig", r=2, target_modules=LLAMA)
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"x={adapter}",
                  "--mode", mode, "--out", tmp_path / mode, "--json")  # fmt: skip
    assert result.code == 4, result.err
    assert "--as-rank" in json.loads(result.out)["error"]["hint"]
