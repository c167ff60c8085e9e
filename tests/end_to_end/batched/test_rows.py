"""``--mode batched``: a batch of different adapters, against PEFT row by row."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_export.commands.remove import remove
from lora_export.commands.verify import verify
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.manifest import read_manifest
from lora_export.core.reports.report_model import as_json
from lora_export.runtime import open_export
from tests.end_to_end.batched.example import (
    CLOSE,
    LOWEST,
    TASK,
    assert_rows,
    by_onnxruntime,
    feeds_of,
)
from tests.helpers.builds import build
from tests.helpers.slow import but_the_first


def test_every_row_of_a_mixed_batch_is_what_peft_gives(built, expected):
    mixed: list[str | None] = ["mnli", None, "five", "sst2", "sst2", "mnli", None, "five"]
    assert_rows(built.output, expected, mixed)


def test_heads_of_other_widths_are_padded_and_masked(built, expected):
    found = by_onnxruntime(built.output, feeds_of(8), [2] * 8)
    assert found.shape == (8, 5)
    np.testing.assert_allclose(found[:, :2], expected["sst2"], **CLOSE)
    assert (found[:, 2:] == LOWEST).all()
    shifted = np.exp(found - found.max(-1, keepdims=True))
    assert (shifted[:, 2:] == 0).all()


def test_the_verification_covers_every_row_and_their_mixing(built):
    row = as_json(built.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    assert row["mixed_relative_l2"] < 1e-5
    assert {each["verdict"] for each in row["adapters"].values()} == {"pass"}
    rows = {name: each.row for name, each in built.manifest.adapters.items()}
    assert {name: each.row for name, each in rows.items()} == {"mnli": 1, "sst2": 2, "five": 3}
    assert all(each.verification == "pass" and each.golden for each in rows.values())
    assert built.reports.latency is None  # no ratio was asked for


@pytest.mark.parametrize(
    ("kind", "task", "settings"),
    but_the_first(
        [
            ("bert", TASK, {"use_dora": True, "target_modules": ["query", "dense"]}),
            ("bert", TASK, {"bias": "lora_only", "target_modules": ["value", "word_embeddings"]}),
            ("bert", "token-classification", {}),
            ("llama", "text-generation", {"target_modules": "all-linear"}),
            ("bert", TASK, {"bias": "all"}),
            ("distilbert", TASK, {"target_modules": ["q_lin", "lin1"]}),
            ("gpt2", "text-generation", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
            ("llama", TASK, {}),
        ],
        slow=2,
    ),
    ids=["dora", "embedding", "tokens", "llama", "biases", "distilbert", "conv1d", "llama-score"],
)
def test_every_kind_of_update_is_a_row(tiny, tmp_path, kind, task, settings):
    base = tiny.base(kind, task)
    two = {name: tiny.adapter(base, task=task, seed=seed, r=rank, **settings)
           for name, seed, rank in (("a", 71, 4), ("b", 72, 6))}  # fmt: skip
    outcome = build(base, two, tmp_path / "out", mode="batched", verify={"enabled": True})
    row = as_json(outcome.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    assert {each["verdict"] for each in row["adapters"].values()} == {"pass"}


def test_a_half_precision_graph_has_stacks_of_its_dtype(tiny, tmp_path):
    base = tiny.base("bert", TASK, dtype="float16")
    two = {
        "a": tiny.adapter(base, seed=1, strength=0.5),
        "b": tiny.adapter(base, seed=2, strength=0.5, labels_count=2),
    }
    outcome = build(base, two, tmp_path / "out", mode="batched", verify={"enabled": True})
    row = as_json(outcome.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    found = by_onnxruntime(outcome.output, feeds_of(2, kind="bert"), [1, 2])
    assert found.dtype == np.float16
    assert np.isfinite(found).all()
    assert found[1, 2] == np.finfo(np.float16).min


def test_a_base_without_the_head_is_no_row(tiny, tmp_path):
    bare = tiny.base("roberta", "feature-extraction")
    two = {
        name: tiny.adapter(bare, seed=seed, labels_count=labels, modules_to_save=["classifier"])
        for name, seed, labels in (("two", 5, 2), ("three", 6, 3))
    }
    outcome = build(
        bare, two, tmp_path / "out", mode="batched", task=TASK, verify={"enabled": True}
    )
    assert outcome.reports.parity.graphs["batched"].verdict == "pass"
    with open_export(outcome.output) as session:
        session.run(feeds_of(2), adapter_ids=["two", "three"])
        with pytest.raises(UsageError, match="the base has no 'classifier"):
            session.run(feeds_of(2), adapter_ids=["two", None])
    remove(outcome.output, "two")
    remove(outcome.output, "three")
    manifest = read_manifest(outcome.output)
    assert manifest.graphs["batched"].weights == manifest.graphs["base"].weights
    assert verify(outcome.output).exit_code() == 0


def test_a_head_is_updated_in_one_row_and_brought_by_another(tiny, tmp_path):
    task = "image-classification"
    base = tiny.base("vit", task)
    two = {
        "low": tiny.adapter(base, task=task, seed=81, target_modules=["q_proj", "classifier"]),
        "whole": tiny.adapter(
            base, task=task, seed=82, modules_to_save=["classifier"], labels_count=5
        ),
    }
    outcome = build(base, two, tmp_path / "out", mode="batched", verify={"enabled": True})
    row = as_json(outcome.reports.parity.graphs["batched"])
    assert row["verdict"] == "pass", row
    with pytest.raises(UnsupportedError, match=r"classifier\.weight.*\[5, 32\].*\[3, 32\]"):
        build(base, two, tmp_path / "swappable", mode="swappable")
    assert not (tmp_path / "swappable").exists()


def test_what_rows_cannot_differ_in_is_refused_by_name(tiny, tmp_path):
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=3, modules_to_save=["classifier", "word_embeddings"])
    with pytest.raises(UnsupportedError, match="word_embeddings"):
        build(base, {"a": adapter}, tmp_path / "out", mode="batched")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="needs adapters"):
        build(base, {}, tmp_path / "out", mode="batched")


def test_a_copy_of_the_bases_table_is_in_no_row_and_in_no_pack(tiny, tmp_path):
    """PEFT saves an embedding and a head whole beside their updates."""
    base = tiny.base("llama", "text-generation")
    modules = ["q_proj", "embed_tokens", "lm_head"]
    adapter = tiny.adapter(base, task="text-generation", seed=91, target_modules=modules)
    names = load_file(adapter / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names if "base_layer" in name} == {*modules[1:]}
    for mode in ("batched", "swappable"):
        outcome = build(base, {"a": adapter}, tmp_path / mode, mode=mode, verify={"enabled": True})
        assert outcome.reports.parity.graphs[mode].verdict == "pass"
        (file,) = (
            path
            for path in outcome.output.rglob("*.safetensors")
            if path.name != "base.safetensors"
        )
        assert not [name for name in load_file(file) if "lora_" not in name]
        assert outcome.manifest.adapters["a"].tensors_applied == len(names)
