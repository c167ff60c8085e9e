"""``merge --verify``: the result's outputs against unmerged PEFT, before it is published."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.merge_record import NOT_ASKED, RECORD_NAME, read_record
from lora_export.ondevice.judge.tolerances import RELATIVE_L2
from lora_export.verification import merged_checkpoint as comparison
from lora_export.weights.checkpoint import open_checkpoint
from tests.cli.running import HEAVY, call, command, stagings
from tests.helpers.handmade import save_adapter, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

CLASSIFICATION, GENERATION = "text-classification", "text-generation"
TRANSLATION = "text2text-generation"

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "a classifier": ("bert", CLASSIFICATION, CLASSIFICATION, {}),
    "a head for a bare model": ("bert", "feature-extraction", CLASSIFICATION, {}),
    "tokens": ("roberta", "token-classification", "token-classification", {}),
    "features": ("distilbert", "feature-extraction", "feature-extraction", {}),
    "answers": ("bert", "question-answering", "question-answering", {}),
    "a decoder": ("gpt2", GENERATION, GENERATION, {"target_modules": ["c_attn", "c_fc"]}),
    "a tie undone": ("llama-tied", GENERATION, GENERATION,
                     {"target_modules": ["embed_tokens", "q_proj"]}),
    "an encoder and a decoder": ("t5", TRANSLATION, TRANSLATION, {}),
    "a head alone": ("llama", GENERATION, GENERATION,
                     {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tiny) -> tuple[Path, Path]:
    """A decoder and an adapter for it."""
    base = tiny.base("llama", GENERATION)
    return base, tiny.adapter(base, task=GENERATION)


def merge(capsys: Any, base: Path, adapter: Path, out: Path, *more: object) -> Any:
    return call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out,
                "--verify", *more)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_compared_with_peft(case, tiny, tmp_path, capsys) -> None:
    kind, base_task, task, settings = CASES[case]
    base = tiny.base(kind, base_task)
    adapter = tiny.adapter(base, task=task, **settings)
    result = merge(capsys, base, adapter, tmp_path / "out", "--json", "--strict")
    assert result.code == 0, result.err
    found = result.document["verification"]
    assert found["verdict"] == result.document["verdict"] == "pass"
    assert found["task"] == task
    assert found["tolerance"] == RELATIVE_L2["float32"]
    assert 0 <= found["relative_l2"] < RELATIVE_L2["float32"]
    assert found["effect"] > 1e-3
    assert read_record(tmp_path / "out").verification.model_dump() == found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_tolerance_is_that_of_the_stored_dtype(dtype, tiny, tmp_path, capsys) -> None:
    base = tiny.base("llama", GENERATION, dtype=dtype)
    adapter = tiny.adapter(base, task=GENERATION, strength=0.5)
    found = merge(capsys, base, adapter, tmp_path / "a", "--json").document["verification"]
    assert found["verdict"] in {"pass", "ambiguous"}  # near ties fall differently in bfloat16
    assert found["tolerance"] == RELATIVE_L2[dtype]
    base = tiny.base("llama", GENERATION)
    cast = merge(capsys, base, adapter, tmp_path / "b", "--json", "--dtype", dtype)
    assert cast.document["verification"]["tolerance"] == RELATIVE_L2[dtype]


def test_the_effect_of_dora_on_a_row_of_zeros_is_measured(tiny, tmp_path, capsys) -> None:
    """Without B A, the direction of such a row (a padding token's) is 0 / 0."""
    shutil.copytree(tiny.base("llama-tied", GENERATION), tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][0] = 0
    save_file(tensors, file, {"format": "pt"})
    adapter = tiny.adapter(
        tmp_path / "base", task=GENERATION, target_modules=["lm_head"], use_dora=True
    )
    found = merge(capsys, tmp_path / "base", adapter, tmp_path / "out", "--json").document
    assert found["verification"]["verdict"] == "pass"
    assert found["verification"]["effect"] > 1e-3


def test_scaled_dropped_and_combined_adapters_are_compared(tiny, tmp_path, capsys) -> None:
    base = tiny.base("llama", GENERATION)
    one = tiny.adapter(base, task=GENERATION)
    two = tiny.adapter(base, task=GENERATION, seed=2)
    plain = merge(capsys, base, one, tmp_path / "plain", "--json").document
    for index, more in enumerate((
        ("--scale", "x=0.5"),
        ("--drop", "*layers.0.*"),
        ("--adapter", f"y={two}", "--combine", "cat", "--combine-weights", "1,0.5"),
    )):  # fmt: skip
        result = merge(capsys, base, one, tmp_path / str(index), "--json", "--strict", *more)
        assert result.code == 0, (more, result.err)
        found = result.document["verification"]
        assert found["verdict"] == "pass"
        assert found["effect"] != pytest.approx(plain["verification"]["effect"], rel=1e-2)


def test_a_wrong_checkpoint_fails(decoder, tmp_path, capsys) -> None:
    base, folder = decoder
    out = tmp_path / "out"
    assert merge(capsys, base, folder, out).code == 0
    adapter = read_adapter(folder, name="x", source="x")

    def compared() -> comparison.MergedComparison:
        return comparison.verify_merged(open_checkpoint(base), out, adapter, dtype="float32")

    assert compared().verdict == "pass"
    values = load_file(out / "model.safetensors")
    before = load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    wrong = {**values, name: before[name]}
    save_file(wrong, out / "model.safetensors", {"format": "pt"})
    assert "above the tolerance" in compared().reason
    assert compared().verdict == "fail"
    del wrong[name]
    save_file(wrong, out / "model.safetensors", {"format": "pt"})
    assert compared().verdict == "fail"


def test_what_rounding_spoils_fails_and_leaves_nothing(tiny, tmp_path, capsys) -> None:
    base = tiny.base("llama", GENERATION, dtype="bfloat16")
    adapter = tiny.adapter(base, task=GENERATION, strength=0.02)
    out = tmp_path / "out"
    result = merge(capsys, base, adapter, out)
    assert result.code == 5, result.err
    assert "of the effect" in result.message
    assert "--float32-where-lossy" in result.message
    assert not out.exists()
    assert not stagings(tmp_path)
    assert merge(capsys, base, adapter, out, "--float32-where-lossy").code == 0


def test_what_does_not_fit_stays_unverified(decoder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    result = merge(capsys, *decoder, tmp_path / "out")
    assert result.code == 0
    assert result.out.startswith(f"{tmp_path / 'out'}: unverified: the comparison needs about")
    found = read_record(tmp_path / "out").verification
    assert (found.verdict, found.relative_l2) == ("unverified", None)
    strict = merge(capsys, *decoder, tmp_path / "strict", "--strict")
    assert strict.code == 5
    assert "unverified" in strict.message
    assert not (tmp_path / "strict").exists()


def test_an_architecture_that_nobody_can_feed_stays_unverified(tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b", architectures=["SomethingForNewUses"])
    adapter = save_adapter(tmp_path / "a", task_type=None)
    result = merge(capsys, base, adapter, tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert result.document["verdict"] == "unverified"
    assert "SomethingForNewUses" in result.document["verification"]["reason"]


def test_without_torch_it_is_refused(tmp_path) -> None:
    base, adapter = save_checkpoint(tmp_path / "b"), save_adapter(tmp_path / "a")
    result = command("merge", "--base", base, "--adapter", adapter, "--out", tmp_path / "out",
                     "--verify", without=HEAVY)  # fmt: skip
    assert result.code == 7
    assert "pip install -e '.[export]'" in result.message
    assert not (tmp_path / "out").exists()


def test_without_the_flag_the_record_and_the_first_line_say_so(tmp_path, capsys) -> None:
    base, adapter = save_checkpoint(tmp_path / "b"), save_adapter(tmp_path / "a")
    out = tmp_path / "out"
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    first = result.out.splitlines()[0]
    assert "unverified" in first
    assert "merge with --verify to compare" in first
    assert read_record(out).verification.verdict == "unverified"
    path = out / RECORD_NAME
    old = json.loads(path.read_text())
    for key in ("verification", "no_effect", "notes"):
        del old[key]
    path.write_text(json.dumps(old))
    assert read_record(out).verification.reason == NOT_ASKED


def test_an_effect_of_zero_fails_unless_it_is_allowed(tiny, tmp_path, capsys) -> None:
    base = tiny.base("llama", GENERATION)
    adapter = shutil.copytree(tiny.adapter(base, task=GENERATION), tmp_path / "a")
    path = adapter / "adapter_model.safetensors"
    save_file({k: v * np.float32("lora_A" in k) for k, v in load_file(path).items()}, path)
    assert merge(capsys, base, adapter, tmp_path / "out").code == 5
    allowed = merge(capsys, base, adapter, tmp_path / "out", "--allow-no-effect", "--json")
    assert allowed.document["verdict"] == "pass"
