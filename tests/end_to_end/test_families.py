"""Each architecture through the whole pipeline, each adapter against PEFT; each form of a base."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.exports import assert_intact, manifest_of, peft_model, report, run_graph, run_torch
from tests.cli.running import call, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TASK = "text-classification"

FAMILIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bert", "token-classification", {"target_modules": ["query", "dense"]}),
    ("bert", "fill-mask", {"labels_count": None}),
    ("roberta", TASK, {"use_rslora": True}),
    ("distilbert", TASK, {"target_modules": ["q_lin", "lin1", "lin2"]}),
    ("deberta-v2", TASK, {"rank_pattern": {"value_proj": 2}, "alpha_pattern": {"query_proj": 3}}),
    ("gpt2", "text-generation", {"target_modules": ["c_attn", "c_fc", "c_proj"]}),
    ("gpt2", TASK, {"fan_in_fan_out": True}),
    ("llama", "text-generation", {"target_modules": "all-linear"}),
    ("llama-tied", "text-generation", {}),
    # variants of LoRA
    ("bert", TASK, {"use_dora": True, "target_modules": ["query", "dense", "word_embeddings"]}),
    ("gpt2", "text-generation", {"use_dora": True, "target_modules": ["c_attn"]}),
    ("distilbert", TASK, {"lora_bias": True, "target_modules": ["q_lin"]}),
    # changes to one side of a tie, or to both
    ("gpt2", "text-generation", {"target_modules": ["wte", "c_attn"]}),
    (
        "llama-tied",
        "text-generation",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    ("llama-tied", "text-generation", {"trainable_token_indices": [5, 2]}),
)


@pytest.mark.parametrize(
    "family", FAMILIES, ids=lambda row: "-".join((*row[:2], *row[2])).replace("_", "-")
)
def test_architecture_end_to_end(tiny: TinyModels, tmp_path: Path, capsys, family) -> None:
    kind, task, settings = family
    base = tiny.base(kind, task)
    adapter = tiny.adapter(base, task=task, **settings)
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--task", task, "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    row = report(out, "parity")["graphs"]["mine"]
    assert row["verdict"] == "pass"
    assert row["metrics"]["relative_l2"] < 1e-5
    assert row["effect"] > 1e-3
    assert any(np.prod(shape) > 60 for shape in row["inputs"])
    assert_intact(out)
    record = manifest_of(out)["adapters"]["mine"]
    stored = load_file(adapter / "adapter_model.safetensors")
    assert record["tensors_applied"] == record["tensors_total"] == len(stored)


def test_tie_that_one_side_changes_is_undone_and_noted(tiny, tmp_path, capsys) -> None:
    base = tiny.base("gpt2", "text-generation")
    adapter = tiny.adapter(base, task="text-generation", target_modules=["wte"])
    plain = tiny.adapter(base, task="text-generation", target_modules=["c_attn"], seed=2)
    out = tmp_path / "out"
    result = call(capsys, "export", "--base", base, "--adapter", f"a={adapter}", "--out", out)
    assert result.code == 0, result.err
    both = ["lm_head.weight", "transformer.wte.weight"]
    assert manifest_of(out)["base"]["untied"] == both
    changed = load_file(out / "weights" / "a.safetensors")
    assert set(changed) == {"transformer.wte.weight"}
    added = call(capsys, "add", out, "--adapter", f"b={plain}")
    assert added.code == 0, added.err
    verified = call(capsys, "verify", out, "--base", base, "--json")
    assert verified.code == 0, verified.err

    tied = tmp_path / "tied"
    assert call(capsys, "export", "--base", base, "--out", tied).code == 0
    assert manifest_of(tied)["base"]["untied"] == []
    before = snapshot(tied)
    refused = call(capsys, "add", tied, "--adapter", f"a={adapter}")
    assert refused.code == 4
    assert "tied" in refused.err
    assert snapshot(tied) == before


def test_task_is_detected_from_the_adapter_else_from_the_base(tiny, tmp_path, capsys) -> None:
    base = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(base, labels_count=3, seed=4)
    for name, flags, task in (
        ("a", ("--adapter", f"mine={adapter}"), TASK),
        ("b", (), "feature-extraction"),
    ):
        result = call(capsys, "export", "--base", base, *flags, "--out", tmp_path / name)
        assert result.code == 0, result.err
        assert manifest_of(tmp_path / name)["base"]["task"] == task


def test_head_that_only_the_adapter_has(tiny: TinyModels, tmp_path: Path, capsys) -> None:
    """A bare base: the adapter's graph is verified, the base's cannot be and says so."""
    base = tiny.base("bert", "feature-extraction")
    adapter, wide = (tiny.adapter(base, labels_count=n, seed=4) for n in (3, 5))
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--labels", "x,y,z", "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err
    manifest = manifest_of(out)
    heads = ["classifier.bias", "classifier.weight"]
    assert manifest["adapters"]["mine"]["missing_in_base"] == heads
    assert manifest["graphs"]["base"]["missing"] == heads
    verdicts = {n: g["verification"] for n, g in manifest["graphs"].items()}
    assert verdicts == {"base": "unverified", "mine": "pass"}
    assert "classifier.weight" in report(out, "parity")["graphs"]["base"]["reason"]
    added = call(capsys, "add", out, "--adapter", f"wide={wide}", "--labels", "a,b,c,d,e")
    assert added.code == 0, added.err
    verified = call(capsys, "verify", out, "--base", base, "--json")
    assert verified.code == 0, verified.err
    assert verified.document["reports"]["parity"]["graphs"]["wide"]["verdict"] == "pass"
    random = np.random.default_rng(0)
    ids = random.integers(3, 200, (2, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    expected = run_torch(peft_model(base, wide, TASK, labels_count=5), feeds)
    assert np.allclose(run_graph(out, "wide", feeds), expected, atol=1e-5)


def test_adapter_with_all_biases_and_a_head(tiny: TinyModels, tmp_path: Path, capsys) -> None:
    """PEFT writes the head's bias three times over: as trained, as a copy, and as it was."""
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, bias="all", seed=8)
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--task", TASK, "--no-latency", "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err
    assert report(tmp_path / "out", "parity")["graphs"]["mine"]["verdict"] == "pass"


@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin", "prefixed"])
def test_every_form_of_a_base_gives_the_same_bytes(tiny, tmp_path, capsys, form: str) -> None:
    import torch

    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=1)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(base / "config.json", other)
    tensors = load_file(base / "model.safetensors")
    if form == "sharded":
        other = tiny.base("bert", TASK, max_shard_size="20KB")
        assert len(list(other.glob("model-*.safetensors"))) > 1
    elif form == "bin":
        state = {name: torch.from_numpy(value) for name, value in tensors.items()}
        torch.save(state, other / "pytorch_model.bin")
    elif form == "sharded bin":
        names = sorted(tensors)
        for shard, part in (("a.bin", names[::2]), ("b.bin", names[1::2])):
            torch.save({n: torch.from_numpy(tensors[n]) for n in part}, other / shard)
        table = {n: "a.bin" if i % 2 == 0 else "b.bin" for i, n in enumerate(names)}
        (other / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    else:
        from safetensors.numpy import save_file

        bare = {name.removeprefix("bert."): value for name, value in tensors.items()}
        save_file(bare, other / "model.safetensors", metadata={"format": "pt"})
    exports = []
    for source, name in ((base, "a"), (other, "b")):
        result = call(capsys, "export", "--base", source, "--adapter", f"mine={adapter}",
                      "--task", TASK, "--out", tmp_path / name)  # fmt: skip
        assert result.code == 0, result.err
        exports.append(snapshot(tmp_path / name))
    for file in ("weights/base.safetensors", "weights/mine.safetensors", "base.onnx", "mine.onnx"):
        assert exports[0][file] == exports[1][file], file
    fingerprints = [
        json.loads(export["lora_export.json"])["base"]["fingerprint"] for export in exports
    ]
    assert (fingerprints[0] == fingerprints[1]) == (form != "prefixed")


def test_bfloat16_checkpoint_becomes_float16(tiny: TinyModels, tmp_path: Path, capsys) -> None:
    base = tiny.base("deberta-v2", TASK, dtype="bfloat16")
    adapter = tiny.adapter(base, seed=1)
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--task", TASK, "--no-latency", "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 0, result.err + result.out
    assert manifest_of(tmp_path / "out")["base"]["dtype"] == "float16"
    row = report(tmp_path / "out", "parity")["graphs"]["mine"]
    assert (row["verdict"], row["tolerance"]) == ("pass", 5e-3)
