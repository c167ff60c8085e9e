"""Values that a dtype cannot hold, unknown dtypes and models, packages that are absent."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import ml_dtypes
import pytest

from tests.cli.running import command
from tests.end_to_end.bad_input.spoiling import (
    TASK,
    Inputs,
    assert_refused,
    build,
    edit_json,
    edit_tensors,
    poison,
)

if TYPE_CHECKING:
    from pathlib import Path


def as_bfloat16(path: Path, *, value: float | None = None) -> None:
    def change(tensors):
        made = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
        if value is not None:
            made["bert.encoder.layer.1.output.dense.weight"][3, 5] = value
        return made

    edit_tensors(path, change)


def test_bfloat16_values_that_float16_cannot_hold(tiny, inputs: Inputs, capsys) -> None:
    base = tiny.base("deberta-v2", TASK)
    shutil.copytree(base, inputs.base, dirs_exist_ok=True)
    as_bfloat16(inputs.base / "model.safetensors")

    def change(tensors):
        tensors["deberta.encoder.layer.1.output.dense.weight"][3, 5] = 1e6

    edit_tensors(inputs.base / "model.safetensors", change)
    bad = inputs._replace(adapter=tiny.adapter(base, seed=1))
    result = build(capsys, bad)
    assert_refused(
        result, bad, 3, "float16", "deberta.encoder.layer.1.output.dense.weight", "--dtype"
    )


def test_merged_values_that_float16_cannot_hold(tiny, inputs: Inputs, tmp_path, capsys) -> None:
    """The base fits float16; base + adapter does not."""
    base = tiny.base("deberta-v2", TASK)
    poison(tiny.adapter(base, seed=1), tmp_path / "large", 1e8)
    bad = inputs._replace(base=base, adapter=tmp_path / "large")
    assert_refused(build(capsys, bad, "--dtype", "float16"), bad, 3, "float16", "value_proj")


def test_unknown_and_impossible_dtypes_are_unsupported(inputs: Inputs, capsys) -> None:
    assert_refused(build(capsys, inputs, "--dtype", "float31"), inputs, 4, "float31")
    assert_refused(build(capsys, inputs, "--dtype", "bfloat16"), inputs, 4, "bfloat16")


@pytest.mark.parametrize(
    ("package", "word"), [("peft", "peft"), ("torch", "torch"), ("onnxruntime", "ONNX Runtime")]
)
def test_missing_runtime_is_found_before_work_begins(inputs: Inputs, package, word) -> None:
    result = command("merge-and-build", "--base", inputs.base / "nowhere", "--task", TASK,
                     "--adapter", f"mine={inputs.adapter}", "--out", inputs.out,
                     without=[package])  # fmt: skip
    assert_refused(result, inputs, 7, word, "nstall")


def test_uncached_graph_without_torch_is_a_missing_runtime(inputs: Inputs, tmp_path) -> None:
    result = command("export", "--base", inputs.base, "--task", TASK, "--out", inputs.out,
                     "--opset", "22",  # no template is for it
                     without=["torch", "transformers"],
                     environment={"LORA_EXPORT_CACHE": str(tmp_path / "cache")})  # fmt: skip
    assert_refused(result, inputs, 7, "torch")


def test_unknown_model_type_is_unsupported(inputs: Inputs, capsys) -> None:
    edit_json(inputs.base / "config.json", model_type="no-such-model")
    assert_refused(build(capsys, inputs), inputs, 4, "no-such-model")
