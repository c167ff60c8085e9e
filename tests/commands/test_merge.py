"""``merge``: PEFT is the oracle for what is merged; everything else is the base, bit for bit."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.core.merge_record import RECORD_NAME, read_record
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.fingerprint import fingerprint
from tests.cli.exports import peft_model
from tests.cli.running import HEAVY, call, command, snapshot
from tests.helpers.builds import merged_by_peft
from tests.helpers.handmade import BERT_SHAPES, save_adapter, save_checkpoint, shapes_of_lora
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path


CLASSIFICATION, GENERATION = "text-classification", "text-generation"
CASES = [
    ("bert", CLASSIFICATION, CLASSIFICATION, {"target_modules": ["query", "key", "dense"]}),
    ("bert", CLASSIFICATION, "feature-extraction", {}),
    ("bert", CLASSIFICATION, CLASSIFICATION, {"target_modules": ["word_embeddings", "value"]}),
    ("gpt2", GENERATION, GENERATION, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    ("gpt2", GENERATION, "feature-extraction", {"target_modules": ["c_attn", "c_proj"]}),
    ("llama", GENERATION, GENERATION, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    ("llama", GENERATION, GENERATION, {"target_modules": ["q_proj"], "use_rslora": True,
                                       "modules_to_save": ["lm_head"]}),
    ("llama-tied", GENERATION, GENERATION, {}),
    ("roberta", CLASSIFICATION, "fill-mask", {"bias": "lora_only"}),
]  # fmt: skip


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize(("kind", "task", "base_task", "settings"), CASES)
def test_merged_checkpoint_is_what_peft_merges(  # noqa: PLR0917
    kind, task, base_task, settings, tiny, tmp_path, capsys
) -> None:
    base = tiny.base(kind, base_task)
    adapter = tiny.adapter(base, task=task, **settings)
    out = tmp_path / "out"
    result = call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out,
                  "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert (
        result.document["adapter"]["tensors_applied"] == result.document["adapter"]["tensors_total"]
    )
    wanted = merged_by_peft(base, adapter, task)
    loaded = load_tiny(out, task, labels_count=3)
    found = {name: value.numpy() for name, value in loaded.state_dict().items()}
    assert set(found) == set(wanted)
    for name, value in found.items():
        error = np.linalg.norm(value.astype(np.float64) - wanted[name])
        assert error <= 1e-6 * max(np.linalg.norm(wanted[name]), 1e-30), name
    changed, renamed = set(result.document["tensors"]), result.document["renamed_by"]
    merged = tensors_in(out)
    for name, value in tensors_in(base).items():
        if renamed + name not in changed:
            assert merged[renamed + name].tobytes() == value.tobytes(), name
    assert changed


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_transformers_loads_the_merge_whole(kind, tiny, tmp_path, capsys) -> None:
    import transformers

    task = CLASSIFICATION if kind == "bert" else GENERATION
    base = tiny.base(kind, task if kind != "bert" else "feature-extraction", tokenizer=True)
    adapter, out = tiny.adapter(base, task=task), tmp_path / "out"
    assert call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out,
                "--max-shard-size", "20KB").code == 0  # fmt: skip
    auto = {"bert": "AutoModelForSequenceClassification"}.get(kind, "AutoModelForCausalLM")
    _, info = getattr(transformers, auto).from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held = tensors_in(out)
    assert set(index["weight_map"]) == set(held)
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in held.values())
    assert len(set(index["weight_map"].values())) > 1
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_same_inputs_give_the_same_bytes_and_the_record_proves_them(parts, capsys) -> None:
    base, adapter, out = parts
    twin = out.parent / "twin"
    for target in (out, twin):
        arguments = ["merge", "--base", base, "--adapter", adapter, "--out", target]
        assert call(capsys, *arguments).code == 0
    assert snapshot(out) == snapshot(twin)
    record = read_record(out)
    assert record.fingerprint == fingerprint(open_checkpoint(out))
    assert record.base.fingerprint == fingerprint(open_checkpoint(base))
    assert len(record.tensors) == 4


def test_it_needs_no_torch(parts) -> None:
    base, adapter, out = parts
    result = command("merge", "--base", base, "--adapter", adapter, "--out", out,
                     without=(*HEAVY, "safetensors"))  # fmt: skip
    assert result.code == 0, result.err
    module = "encoder.layer.1.attention.self.value"
    stem = f"base_model.model.bert.{module}.lora"
    factors, before = tensors_in(adapter), tensors_in(base)[f"{module}.weight"]
    change = 2 * factors[f"{stem}_B.weight"] @ factors[f"{stem}_A.weight"]  # alpha 4, rank 2
    assert np.abs(change).max() > 0.1
    assert np.allclose(tensors_in(out)[f"{module}.weight"], before + change, atol=1e-6)


def test_unmerge_gives_the_base_back_bit_for_bit(parts, capsys) -> None:
    base, adapter, out = parts
    assert call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out).code == 0
    back = out.parent / "back"
    result = call(capsys, "merge", "--unmerge", out, "--base", base, "--out", back, "--json")
    assert result.code == 0, result.err
    assert result.document["fingerprint"] == fingerprint(open_checkpoint(base))
    for name, value in tensors_in(base).items():
        assert tensors_in(back)[name].tobytes() == value.tobytes()


def test_unmerge_refuses_another_base(parts, tmp_path, capsys) -> None:
    base, adapter, out = parts
    assert call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out).code == 0
    other = save_checkpoint(tmp_path / "other", {**BERT_SHAPES, "more.weight": (2, 2)})
    back = tmp_path / "back"
    result = call(capsys, "merge", "--unmerge", out, "--base", other, "--out", back)
    assert result.code == 3
    assert "fingerprint" in result.message
    assert not back.exists()
    plain = call(capsys, "merge", "--unmerge", base, "--base", base, "--out", back)
    assert plain.code == 3
    assert RECORD_NAME in plain.message


@pytest.mark.parametrize(
    ("raw", "code", "word"),
    [
        (b"{", 3, "damaged"),
        (b'{"format_version": 2}', 4, "format_version 2"),
        (b"[]", 3, "damaged"),
    ],
)
def test_damaged_record(parts, capsys, raw, code, word) -> None:
    base, _, out = parts
    shutil.copytree(base, out)
    (out / RECORD_NAME).write_bytes(raw)
    result = call(capsys, "merge", "--unmerge", out, "--base", base, "--out", out.parent / "back")
    assert result.code == code
    assert word in result.message


def small_update(tmp_path: Path, dtype: str = "float16") -> tuple[Path, Path]:
    """A float16 base of values near 1 and an update ten thousand times smaller."""
    base, adapter = save_checkpoint(tmp_path / "b"), save_adapter(tmp_path / "a")
    values = load_file(base / "model.safetensors")
    save_file({k: (v + 4).astype(dtype) for k, v in values.items()}, base / "model.safetensors")
    path = adapter / "adapter_model.safetensors"
    save_file({k: v * np.float32(0.01) for k, v in load_file(path).items()}, path)
    return base, adapter


def test_a_lossy_merge_is_told_and_float32_keeps_the_delta(tmp_path, capsys) -> None:
    base, adapter = small_update(tmp_path)
    arguments = ["merge", "--base", base, "--adapter", adapter, "--json", "--out"]
    rough = call(capsys, *arguments, tmp_path / "rough")
    assert rough.code == 0
    assert "warning: 4 tensor(s)" in rough.err
    document = rough.document
    merged, before = tensors_in(tmp_path / "rough"), tensors_in(base)
    factors = load_file(adapter / "adapter_model.safetensors")
    for name, row in document["tensors"].items():
        stem = f"base_model.model.bert.{name.removesuffix('.weight')}"
        delta = 2 * (factors[f"{stem}.lora_B.weight"].astype(np.float64)
                     @ factors[f"{stem}.lora_A.weight"].astype(np.float64))  # fmt: skip
        moved = merged[name].astype(np.float64) - before[name].astype(np.float64)
        wanted = np.linalg.norm(moved - delta) / np.linalg.norm(delta)
        assert row["relative_error"] == pytest.approx(wanted, rel=1e-2)
        assert row["unmoved_share"] == pytest.approx(np.mean(moved == 0))
    assert document["fidelity"]["relative_error"] > 0.1
    assert len(document["lossy"]) == 4
    kept = call(capsys, *arguments, tmp_path / "kept", "--float32-where-lossy")
    assert kept.code == 0
    assert "warning" not in kept.err
    assert kept.document["fidelity"]["relative_error"] < 1e-2
    held = tensors_in(tmp_path / "kept")
    assert {name for name, v in held.items() if v.dtype == np.float32} == set(document["lossy"])


def test_dtype_casts_every_floating_tensor_and_says_so_in_the_config(parts, capsys) -> None:
    base, adapter, out = parts
    assert call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out, "--dtype",
                "float16").code == 0  # fmt: skip
    assert {value.dtype for value in tensors_in(out).values()} == {np.dtype(np.float16)}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"
    assert read_record(out).fingerprint == fingerprint(open_checkpoint(out))


def test_labels_name_the_head_that_the_adapter_brings(parts, capsys) -> None:
    base, _, out = parts
    head = {"base_model.model.classifier.weight": (3, 8), "base_model.model.classifier.bias": (3,)}
    adapter = save_adapter(base.parent / "head", {**shapes_of_lora(), **head})
    wrong = call(
        capsys, "merge", "--base", base, "--adapter", adapter, "--out", out, "--labels=a,b"
    )
    assert wrong.code == 2
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out,
                  "--labels=a,b,c", "--json")  # fmt: skip
    assert result.document["brought"] == ["classifier.bias", "classifier.weight"]
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= set(tensors_in(out))


def test_tie_that_one_side_changes_is_undone(tiny, tmp_path: Path, capsys) -> None:
    import torch
    import transformers

    base = tiny.base("gpt2", "text-generation")
    adapter = tiny.adapter(base, task="text-generation", target_modules=["wte"])
    out = tmp_path / "out"
    result = call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out)
    assert result.code == 0, result.err
    assert read_record(out).base.fingerprint == fingerprint(open_checkpoint(base))
    merged = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert merged.config.tie_word_embeddings is False
    unmerged = peft_model(base, adapter, "text-generation")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = unmerged(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
