"""Files of whole tensors, and fine-tuned checkpoints: complete, or refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.running import call, stagings

if TYPE_CHECKING:
    from pathlib import Path

Tensors = dict[str, np.ndarray]
FORMAT = ("--adapter-format", "delta")
GENERATION = "text-generation"


def tuned(base: Path, seed: int = 0) -> Tensors:
    """Return the tensors of `base`, each changed."""
    random = np.random.default_rng(seed)
    held = load_file(base / "model.safetensors")
    return {
        name: (value + 0.05 * random.standard_normal(value.shape)).astype(value.dtype)
        for name, value in held.items()
    }


def checkpoint(base: Path, folder: Path, tensors: Tensors, parts: int = 1) -> Path:
    """Write a checkpoint with the config of `base`, in one file or in shards."""
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    if parts == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    places: dict[str, str] = {}
    for part in range(parts):
        own = {name: tensors[name] for name in sorted(tensors)[part::parts]}
        places |= dict.fromkeys(own, f"model-{part}.safetensors")
        save_file(own, folder / f"model-{part}.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def merge(capsys: Any, base: Path, update: Path, out: Path, *more: object) -> Any:
    return call(capsys, "merge", "--base", base, "--adapter", f"u={update}", *FORMAT, "--out", out,
                "--json", *more)  # fmt: skip


@pytest.mark.parametrize("parts", [1, 3])
def test_a_fine_tuned_checkpoint_is_merged_whole(
    parts: int, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    own = tuned(base)
    update = checkpoint(base, tmp_path / "u", own, parts)
    result = merge(capsys, base, update, tmp_path / "out")
    assert result.code == 0, result.err
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == own.keys()
    assert all(np.array_equal(found[name], own[name]) for name in own)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), [("gpt2", GENERATION), ("bert", "text-classification")])
def test_trained_biases_are_compared_with_transformers(
    kind: str, task: str, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base(kind, task)
    biases = {name: value for name, value in tuned(base).items() if name.endswith(".bias")}
    save_file(biases, tmp_path / "u.safetensors")
    result = merge(capsys, base, tmp_path / "u.safetensors", tmp_path / "out", "--verify",
                   "--strict")  # fmt: skip
    assert result.code == 0, result.err
    assert result.document["verification"]["verdict"] == "pass"
    assert result.document["verification"]["effect"] > 0.01
    assert result.document["adapter"]["tensors_applied"] == len(biases)


def missing(tensors: Tensors) -> None:
    del tensors["model.norm.weight"]


def extra(tensors: Tensors) -> None:
    tensors["model.layers.9.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)


def strange(tensors: Tensors) -> None:
    tensors["model.adapter.weight"] = np.ones((2, 2), np.float32)


def narrow(tensors: Tensors) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:-1].copy()


def not_a_number(tensors: Tensors) -> None:
    tensors["model.norm.weight"][0] = np.nan


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "model.norm.weight"),
        (extra, "model.layers.9.mlp.up_proj.weight"),
        (strange, "model.adapter.weight"),
        (narrow, "the adapter has [31, 32], the model [32, 32]"),
        (not_a_number, "NaN"),
    ],
)
def test_a_checkpoint_that_is_not_of_the_base_is_refused(
    damage: Any, words: str, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    tensors = tuned(base)
    damage(tensors)
    update = checkpoint(base, tmp_path / "u", tensors)
    result = merge(capsys, base, update, tmp_path / "out")
    assert result.code == 3, result.err
    assert words in result.err
    assert stagings(tmp_path) == []
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_missing_is_named(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    base = tiny.base("llama", GENERATION)
    update = checkpoint(base, tmp_path / "u", tuned(base), 3)
    (update / "model-1.safetensors").unlink()
    result = merge(capsys, base, update, tmp_path / "out")
    assert result.code == 3
    assert "'model-1.safetensors'" in json.loads(result.out)["error"]["message"]


@pytest.mark.parametrize(("kind", "rank"), [("llama", 4), ("gpt2", 3)])
def test_a_lora_is_extracted_with_its_loss(
    kind: str, rank: int, tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base(kind, GENERATION)
    own, before = tuned(base), load_file(base / "model.safetensors")
    update = checkpoint(base, tmp_path / "u", own)
    result = call(capsys, "adapter", "convert", update, *FORMAT, "--to", "peft", "--base", base,
                  "--extract-rank", rank, "-o", tmp_path / "lora", "--json")  # fmt: skip
    assert result.code == 0, result.err
    losses = result.document["losses"]
    merged = call(capsys, "merge", "--base", base, "--adapter", f"x={tmp_path / 'lora'}", "--out",
                  tmp_path / "out")  # fmt: skip
    assert merged.code == 0, merged.err
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert len(losses) >= 8
    for name, value in own.items():
        if name not in losses:
            np.testing.assert_allclose(found[name], value, atol=1e-6)
            continue
        change = value.astype(np.float64) - before[name]
        values = np.linalg.svd(change, compute_uv=False)
        best = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        assert losses[name] == pytest.approx(best, rel=1e-4)
        loss = np.linalg.norm(found[name] - value) / np.linalg.norm(change)
        assert loss == pytest.approx(best, rel=1e-3)


def test_whole_tensors_are_converted_with_a_rank_only(
    tiny: Any, tmp_path: Path, capsys: Any
) -> None:
    base = tiny.base("llama", GENERATION)
    update = checkpoint(base, tmp_path / "u", tuned(base))
    result = call(capsys, "adapter", "convert", update, *FORMAT, "--to", "peft", "--base", base,
                  "-o", tmp_path / "lora", "--json")  # fmt: skip
    assert result.code == 2
    assert "--extract-rank" in json.loads(result.out)["error"]["hint"]
