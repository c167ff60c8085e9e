"""``merge`` of an adapter that changes nothing: refused, and recorded where that is allowed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.core.merge_record import read_record
from tests.cli.running import call, stagings
from tests.helpers.handmade import save_adapter, save_checkpoint, shapes_of_lora
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

GENERATION = "text-generation"
WEIGHTS = "adapter_model.safetensors"
HEAD = {"base_model.model.classifier.weight": (3, 8), "base_model.model.classifier.bias": (3,)}


def edited(folder: Path, change: Any) -> Path:
    """Replace each tensor of an adapter by ``change(name, tensor)``; return the folder."""
    path = folder / WEIGHTS
    save_file({k: np.ascontiguousarray(change(k, v)) for k, v in load_file(path).items()}, path)
    return folder


def zeroed(folder: Path, part: str) -> Path:
    return edited(folder, lambda name, value: value * (part not in name))


def merge(capsys: Any, base: Path, adapter: Path | str, out: Path, *more: object) -> Any:
    return call(capsys, "merge", "--base", base, "--adapter", adapter, "--out", out, "--json",
                *more)  # fmt: skip


def refused(capsys: Any, base: Path, adapter: Path, out: Path, *more: object) -> str:
    """Require that the merge is refused and leaves nothing, and passes where it is allowed."""
    result = merge(capsys, base, adapter, out, *more)
    assert result.code == 5, result.err
    assert "--allow-no-effect" in result.message
    assert not out.exists()
    assert not stagings(out.parent)
    allowed = merge(capsys, base, adapter, out, *more, "--allow-no-effect")
    assert allowed.code == 0, allowed.err
    reason = allowed.document["no_effect"]
    assert reason == read_record(out).no_effect
    assert reason in result.message
    return str(reason)


ZERO: dict[str, Any] = {
    "B is zero": lambda folder: zeroed(folder, "lora_B"),
    "A is zero": lambda folder: zeroed(folder, "lora_A"),
    "the ranks cancel": lambda folder: edited(
        folder,
        lambda name, value: (
            np.concatenate(
                [value, value if "lora_A" in name else -value], axis=0 if "lora_A" in name else 1
            )
            if "lora_" in name
            else value
        ),
    ),
}


@pytest.mark.parametrize("case", ZERO)
@pytest.mark.parametrize("dtype", [(), ("--dtype", "bfloat16")])
def test_an_update_of_zero_is_refused(case, dtype, tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b")
    rank = 4 if case == "the ranks cancel" else 2
    adapter = ZERO[case](save_adapter(tmp_path / "a", r=rank))
    assert "its update is zero" in refused(capsys, base, adapter, tmp_path / "out", *dtype)
    shown = call(capsys, "inspect", adapter)
    assert shown.code == 0
    assert "zero: the adapter adds nothing" in shown.out
    paired = call(capsys, "inspect", base, adapter, "--json")
    assert len(paired.document["adapter"]["zero_updates"]) == 4


def test_a_scale_of_zero_and_an_alpha_of_zero_are_refused(tmp_path, capsys) -> None:
    base, adapter = save_checkpoint(tmp_path / "b"), save_adapter(tmp_path / "a")
    refused(capsys, base, adapter, tmp_path / "scaled", "--scale", "a=0")
    silent = save_adapter(tmp_path / "silent", lora_alpha=0)
    refused(capsys, base, silent, tmp_path / "out")


def test_a_trained_head_does_not_make_up_for_updates_of_zero(tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b")
    adapter = zeroed(save_adapter(tmp_path / "a", {**shapes_of_lora(), **HEAD}), "lora_B")
    refused(capsys, base, adapter, tmp_path / "out")


def test_some_updates_of_zero_are_a_note(tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b")
    adapter = zeroed(save_adapter(tmp_path / "a"), "layer.1.attention.self.query.lora_B")
    result = merge(capsys, base, adapter, tmp_path / "out")
    assert result.code == 0
    (note,) = result.document["notes"]
    assert "1 of 4 updates" in note
    assert "encoder.layer.1.attention.self.query.weight" in note
    assert f"note: {note}" in result.err
    assert read_record(tmp_path / "out").notes == [note]
    assert read_record(tmp_path / "out").no_effect is None
    assert "zero for 1 of 4" in call(capsys, "inspect", adapter).out


@pytest.mark.parametrize(
    ("method", "weights"),
    [("cat", "0.3,-0.3"), ("linear", "1,-1"), ("svd", "0.7,-0.7"), ("linear", "0,0")],
)
def test_adapters_that_cancel_are_refused(method, weights, tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b")
    one = save_adapter(tmp_path / "one")
    two = shutil.copytree(one, tmp_path / "two")
    refused(capsys, base, one, tmp_path / "out", "--adapter", two, "--combine", method,
            "--combine-weights", weights)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored", [False, True])
def test_an_update_that_rounding_loses_is_refused(dtype, stored, tmp_path, capsys) -> None:
    import ml_dtypes

    numpy = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    base = save_checkpoint(tmp_path / "b")
    path = base / "model.safetensors"
    values = {k: np.ascontiguousarray(v + 4) for k, v in load_file(path).items()}
    rounded = {k: v.astype(numpy) for k, v in values.items()}
    save_file(rounded if stored else values, path)
    adapter = edited(save_adapter(tmp_path / "a"), lambda _, value: value * np.float32(4e-3))
    if not stored:
        values = {k: v.astype(numpy).astype(np.float32) for k, v in values.items()}
        save_file(values, path)
    more = () if stored else ("--dtype", dtype)
    reason = refused(capsys, base, adapter, tmp_path / "out", *more)
    assert "lost to rounding" in reason
    kept = merge(capsys, base, adapter, tmp_path / "kept", *more, "--float32-where-lossy")
    assert kept.code == 0
    assert kept.document["no_effect"] is None
    merged = load_file(tmp_path / "kept" / "model.safetensors")
    name = "encoder.layer.0.attention.self.query"
    factors = load_file(adapter / WEIGHTS)
    a, b = (factors[f"base_model.model.bert.{name}.lora_{part}.weight"] for part in "AB")
    wanted = 2 * b.astype(np.float64) @ a
    found = merged[f"{name}.weight"].astype(np.float64) - rounded[f"{name}.weight"].astype(float)
    assert np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dtype", [(), ("--dtype", "float16")])
def test_replaced_values_that_equal_the_bases_are_refused(dtype, tmp_path, capsys) -> None:
    shapes = {"classifier.weight": (3, 8), "classifier.bias": (3,),
              "bert.embeddings.word_embeddings.weight": (20, 8)}  # fmt: skip
    base = save_checkpoint(tmp_path / "b", shapes)
    adapter = save_adapter(tmp_path / "a", HEAD, modules_to_save=["classifier"])
    values = load_file(base / "model.safetensors")
    edited(adapter, lambda name, _: values[name.removeprefix("base_model.model.")])
    assert "equals the base's" in refused(capsys, base, adapter, tmp_path / "out", *dtype)
    edited(adapter, lambda name, value: value + np.float32("bias" in name))
    assert merge(capsys, base, adapter, tmp_path / "changed", *dtype).code == 0


def test_rows_that_equal_the_bases_are_refused(tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b")
    key = "base_model.model.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta"
    adapter = save_adapter(tmp_path / "a", {key: (2, 8)},
                           trainable_token_indices={"word_embeddings": [3, 7]})  # fmt: skip
    words = load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"]
    edited(adapter, lambda *_: words[[3, 7]])
    refused(capsys, base, adapter, tmp_path / "out")
    edited(adapter, lambda _, value: value * 2)
    assert merge(capsys, base, adapter, tmp_path / "changed").code == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_untrained_dora_is_refused(kind, tiny, tmp_path, capsys) -> None:
    """The magnitude is what PEFT starts with: the length of W0, which is rounded."""
    import peft

    base = tiny.base(kind, GENERATION)
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}[kind]
    config = peft.LoraConfig(r=4, target_modules=targets, use_dora=True, task_type="CAUSAL_LM",
                             fan_in_fan_out=kind == "gpt2")  # fmt: skip
    model = peft.get_peft_model(load_tiny(base, GENERATION), config)
    model.save_pretrained(str(tmp_path / "a"))
    assert "zero" in refused(capsys, base, tmp_path / "a", tmp_path / "out")


def test_a_small_update_has_an_effect(tmp_path, capsys) -> None:
    base = save_checkpoint(tmp_path / "b")
    adapter = edited(save_adapter(tmp_path / "a"), lambda _, value: value * np.float32(3e-3))
    result = merge(capsys, base, adapter, tmp_path / "out")
    assert result.code == 0
    assert result.document["no_effect"] is None
