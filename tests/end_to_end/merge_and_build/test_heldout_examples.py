"""Data sets of recipes and of ``verify``: accuracies, changed predictions, damaged files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.cli.exports import (
    peft_model,
    report,
    run_torch,
    scale_tensor,
)
from tests.cli.running import call, stagings
from tests.end_to_end.merge_and_build.example import TASK, Built, write_recipe

if TYPE_CHECKING:
    from pathlib import Path


def dataset_of(built: Built, path: Path, *, wrong: int = 0) -> list[int]:
    """Write a data set whose labels are PEFT's own predictions, the first `wrong` ones moved on."""
    import tokenizers

    random = np.random.default_rng(3)
    texts = [
        " ".join(f"w{i}" for i in random.integers(3, 200, int(random.integers(2, 20))))
        for _ in range(40)
    ]
    tokenizer = tokenizers.Tokenizer.from_file(str(built.base / "tokenizer.json"))
    model = peft_model(built.base, built.adapters["first"], TASK)
    predicted = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        predicted.append(int(run_torch(model, feeds).argmax()))
    names = ["red", "green", "blue"]
    labels = [(p + (i < wrong)) % 3 for i, p in enumerate(predicted)]
    rows = [
        {"text": text, "label": names[label] if i % 2 else label}
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return predicted


def test_dataset_of_a_recipe_repeats_the_accuracy(built: Built, tmp_path: Path, capsys) -> None:
    predicted = dataset_of(built, tmp_path / "heldout.jsonl", wrong=10)
    assert len(set(predicted)) > 1
    recipe = write_recipe(
        tmp_path,
        f"base: {built.base}\nadapters: [{{name: first, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\nlabels: [red, green, blue]\noutput: out\n"
        "verify: {dataset: heldout.jsonl, metric: accuracy}\nlatency: {enabled: false}\n",
    )
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 0, result.err
    row = report(tmp_path / "out", "parity")["graphs"]["first"]["dataset"]
    assert row["count"] == 40
    assert row["graph"] == row["reference"] == 0.75
    assert row["disagreements"] == 0
    assert "0.7500" in result.out


def test_verify_looks_at_a_dataset_before_it_begins(built, tmp_path, capsys) -> None:
    result = call(
        capsys, "verify", built.out, "--base", built.base, "--dataset", tmp_path / "none.jsonl"
    )
    assert (result.code, result.out) == (3, "")
    assert "cannot read the data set" in result.err
    assert "parity of" not in result.err


def test_verify_with_a_dataset_finds_changed_predictions(built, copied, tmp_path, capsys) -> None:
    dataset_of(built, tmp_path / "heldout.jsonl")
    scale_tensor(copied, "weights/first.safetensors", -1.0, containing="classifier.weight")
    result = call(
        capsys, "verify", copied, "--base", built.base, "--dataset", tmp_path / "heldout.jsonl",
        "--json",
    )  # fmt: skip
    assert result.code == 5
    row = result.document["reports"]["parity"]["graphs"]["first"]
    assert row["dataset"]["reference"] == 1.0
    assert row["dataset"]["graph"] < 1.0
    assert row["dataset"]["clear_disagreements"] == row["dataset"]["disagreements"] == 40
    assert len(row["dataset"]["differing"]) == 20  # the first of them


@pytest.mark.parametrize(
    "rows",
    ["", "{}\n", '{"text": "w3"}\n', "not json\n", '{"text": "w3", "label": "purple"}\n'],
)
def test_damaged_dataset_is_bad_input_and_leaves_nothing(built, tmp_path, capsys, rows) -> None:
    (tmp_path / "data.jsonl").write_text(rows)
    recipe = write_recipe(
        tmp_path / "recipe",
        f"base: {built.base}\nadapters: [{{name: first, source: {built.adapters['first']}}}]\n"
        f"task: {TASK}\nlabels: [red, green, blue]\noutput: ../parent/out\n"
        "verify: {dataset: ../data.jsonl}\nlatency: {enabled: false}\n",
    )
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 3
    assert "data.jsonl" in result.message
    assert not (tmp_path / "parent" / "out").exists()
    assert stagings(tmp_path) == []
