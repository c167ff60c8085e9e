"""Tasks with other inputs or outputs than text and one tensor, through the whole pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch

from lora_export.runtime.ort import OrtRunner
from tests.cli.exports import assert_intact, manifest_of, peft_model, report
from tests.cli.running import call

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def outputs_of(graph: Path, feeds):
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def close(actual, expected) -> bool:
    return np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


def build(capsys, base: Path, adapter: Path, task: str, out: Path) -> None:
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--task", task, "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    row = report(out, "parity")["graphs"]["mine"]
    assert row["verdict"] == "pass"
    assert row["effect"] > 1e-3
    assert_intact(out)
    record = manifest_of(out)["adapters"]["mine"]
    assert record["tensors_applied"] == record["tensors_total"]


def test_images_through_linear_layers_and_convolutions(tiny: TinyModels, tmp_path, capsys) -> None:
    task = "image-classification"
    base = tiny.base("vit", task)
    adapter = tiny.adapter(
        base,
        task=task,
        target_modules=["q_proj", "v_proj", "projection"],
        modules_to_save=["classifier"],
    )
    build(capsys, base, adapter, task, tmp_path / "out")
    pixels = np.random.default_rng(0).standard_normal((5, 3, 24, 24)).astype(np.float32)
    with torch.inference_mode():
        expected = peft_model(base, adapter, task, labels_count=3)(torch.from_numpy(pixels)).logits
    actual = outputs_of(tmp_path / "out" / "mine.onnx", {"pixel_values": pixels})
    assert close(actual["logits"], expected.numpy())


def test_both_ends_of_an_answer(tiny: TinyModels, tmp_path, capsys) -> None:
    task = "question-answering"
    base = tiny.base("bert", task)
    adapter = tiny.adapter(base, task=task)
    build(capsys, base, adapter, task, tmp_path / "out")
    ids = np.random.default_rng(0).integers(3, 200, (2, 11))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    with torch.inference_mode():
        merged = peft_model(base, adapter, task).merge_and_unload()
        expected = merged(**{name: torch.tensor(value) for name, value in feeds.items()})
    actual = outputs_of(tmp_path / "out" / "mine.onnx", feeds)
    assert set(actual) == {"start_logits", "end_logits"}
    for name, value in actual.items():
        assert close(value[mask == 1], expected[name].numpy()[mask == 1]), name


@pytest.mark.parametrize("end", ["start_logits", "end_logits"])
def test_either_end_that_is_wrong_fails_verification(
    tiny: TinyModels, tmp_path, capsys, monkeypatch, end
) -> None:
    base = tiny.base("bert", "question-answering")
    run = OrtRunner.run

    def wrong(self, feeds):
        outputs = run(self, feeds)
        return {**outputs, end: outputs[end] * 1.01}

    monkeypatch.setattr(OrtRunner, "run", wrong)
    result = call(capsys, "merge-and-build", "--base", base, "--task", "question-answering",
                  "--adapter", tiny.adapter(base, task="question-answering"),
                  "--no-latency", "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 5, result.err
    rows = report(tmp_path / "out", "parity")["graphs"]
    assert {row["verdict"] for row in rows.values()} == {"fail"}
    for row in rows.values():  # one of two outputs of about the same size is off by a hundredth
        assert 0.002 < row["metrics"]["relative_l2"] < 0.01
