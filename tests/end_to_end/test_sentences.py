"""Sentence embeddings: the formulae of sentence-transformers, adapters, what is refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from lora_export.runtime.ort import OrtRunner
from tests.cli.exports import assert_intact, manifest_of, peft_model, report
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.models import load_tiny
from tests.helpers.sentences import FLAGS, pooled, save_sentences

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

FEATURES = "feature-extraction"


def batch(*, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and a mask: a full row, a padded one, and one with a single token."""
    ids = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(9)[None, :] < torch.tensor([9, 5, 1])[:, None]).long()
    return ids, mask.flip(1) if left else mask


def run(out: Path, graph: str, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    runner = OrtRunner(out / f"{graph}.onnx")
    found = runner.run({name: value.numpy() for name, value in feeds.items()})
    assert list(found) == ["sentence_embedding"]
    return found["sentence_embedding"]


def error(actual: np.ndarray, expected: torch.Tensor) -> float:
    wanted = expected.double().numpy()
    assert actual.shape == wanted.shape
    return float(np.linalg.norm(actual.astype(np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 3e-3)])
def test_every_pooling_with_padding_on_either_side(
    tiny: TinyModels, tmp_path, dtype: str, tolerance: float
) -> None:
    base = save_sentences(tiny.base("bert", FEATURES), tmp_path / "base", *FLAGS, normalize=False)
    build(base, {}, tmp_path / "out", dtype=dtype)
    record = manifest_of(tmp_path / "out")["base"]
    assert record["task"] == "sentence-similarity"
    model = load_tiny(base, FEATURES)
    for left in (False, True):
        ids, mask = batch(left=left)
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        actual = run(tmp_path / "out", "base", ids, mask)
        assert actual.dtype == dtype
        for flag, part in zip(FLAGS, np.split(actual, len(FLAGS), axis=1), strict=True):
            assert error(part, pooled(flag, states, mask)) < tolerance, (flag, left)


def test_adapter_behind_which_a_dense_layer_follows(tiny: TinyModels, tmp_path, capsys) -> None:
    bare = tiny.base("bert", FEATURES)
    flags = ("cls_token", "mean_tokens")
    base = save_sentences(bare, tmp_path / "base", *flags, dense=12)
    adapter = tiny.adapter(bare, task=FEATURES, labels_count=None)
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    assert report(out, "parity")["graphs"]["mine"]["verdict"] == "pass"
    assert manifest_of(out)["base"]["pooling"] == "cls+mean, dense 64→12 Tanh, normalize"
    assert (out / "hf" / "1_Pooling" / "config.json").is_file()
    assert_intact(out)

    ids, mask = batch(left=False)
    with torch.inference_mode():
        model = peft_model(base, adapter, FEATURES)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    held = load_file(base / "2_Dense" / "model.safetensors")
    wide = torch.cat([pooled(flag, states, mask) for flag in flags], dim=1)
    dense = torch.tanh(wide @ held["linear.weight"].double().T + held["linear.bias"].double())
    expected = torch.nn.functional.normalize(dense, dim=1)
    assert error(run(out, "mine", ids, mask), expected) < 1e-5
    assert error(run(out, "base", ids, mask), expected) > 1e-3

    other = tiny.adapter(bare, task=FEATURES, labels_count=None, seed=7)
    assert call(capsys, "add", out, "--adapter", f"other={other}").code == 0
    assert call(capsys, "verify", out, "--base", base).code == 0
    graphs = report(out, "parity")["graphs"]
    assert {name: row["verdict"] for name, row in graphs.items()} == dict.fromkeys(
        ("base", "mine", "other"), "pass"
    )


def test_decoder_pools_its_last_token_in_a_swappable_graph(
    tiny: TinyModels, tmp_path, capsys
) -> None:
    bare = tiny.base("llama", FEATURES)
    base = save_sentences(bare, tmp_path / "base", pooling_mode="lasttoken")
    adapter = tiny.adapter(bare, task=FEATURES, labels_count=None)
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={adapter}",
                  "--mode", "swappable", "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    row = report(out, "parity")["graphs"]["swappable"]["adapters"]["mine"]
    assert row["verdict"] == "pass"
    assert row["effect"] > 1e-3


def test_feature_extraction_still_returns_the_states(tiny: TinyModels, tmp_path) -> None:
    base = save_sentences(tiny.base("bert", FEATURES), tmp_path / "base", "mean_tokens")
    build(base, {}, tmp_path / "out", task=FEATURES)
    graph = onnx.load(tmp_path / "out" / "base.onnx", load_external_data=False).graph
    assert [each.name for each in graph.output] == ["last_hidden_state"]
    assert manifest_of(tmp_path / "out")["base"].get("pooling") is None


def _change(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _module(folder: Path, at: int, **changes) -> None:
    rows = json.loads((folder / "modules.json").read_text())
    rows[at] |= changes
    (folder / "modules.json").write_text(json.dumps(rows))


REFUSED = {
    "another module": (
        lambda f: _module(f, 2, type="sentence_transformers.models.CNN"),
        4, "'2_Dense' is a CNN",
    ),
    "code of its own": (
        lambda f: _module(f, 0, type="custom_st.Transformer"), 4, "is a custom_st.Transformer"
    ),
    "a way out": (lambda f: _module(f, 1, path=".."), 3, "not a plain name"),
    "an unknown mode": (
        lambda f: _change(f / "1_Pooling/config.json", pooling_mode="attention"),
        4, "pools by 'attention'",
    ),
    "prompts left out": (
        lambda f: _change(f / "1_Pooling/config.json", include_prompt=False), 4, "prompts"
    ),
    "an unknown activation": (
        lambda f: _change(f / "2_Dense/config.json", activation_function="my.Swish"),
        4, "'my.Swish'",
    ),
    "another width": (
        lambda f: _change(f / "2_Dense/config.json", out_features=13), 3, "means [13, 32]"
    ),
    "no pooling config": (
        lambda f: (f / "1_Pooling/config.json").unlink(), 3, "1_Pooling/config.json"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name(tiny: TinyModels, tmp_path, capsys, case: str) -> None:
    damage, code, text = REFUSED[case]
    base = tiny.base("bert", FEATURES)
    folder = save_sentences(base, tmp_path / "base", "mean_tokens", dense=12)
    damage(folder)
    result = call(capsys, "merge-and-build", "--base", folder, "--no-verify", "--no-latency",
                  "--out", tmp_path / "out")  # fmt: skip
    assert result.code == code, result.err
    assert text in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_a_module_without_end_are_not_copied(
    tiny: TinyModels, tmp_path, capsys, name: str
) -> None:
    base = tiny.base("bert", FEATURES)
    adapter = tiny.adapter(base, task=FEATURES, labels_count=None)
    folder = save_sentences(base, tmp_path / "base", "mean_tokens", dense=12)
    with (folder / "2_Dense" / name).open("ab") as stream:
        stream.truncate(10 << 30)  # a hole: it takes no disk
    result = call(capsys, "merge", "--base", folder, "--adapter", adapter,
                  "--out", tmp_path / "out")  # fmt: skip
    assert (result.code, name in result.err) == (3, True), result.err
    assert not (tmp_path / "out").exists()


def test_task_without_modules_says_where_pooling_would_be(
    tiny: TinyModels, tmp_path, capsys
) -> None:
    result = call(capsys, "merge-and-build", "--base", tiny.base("bert", FEATURES), "--no-latency",
                  "--task", "sentence-embeddings", "--out", tmp_path / "out")  # fmt: skip
    assert result.code == 3
    assert "modules.json" in result.err


def with_pooling(adapter: Path, folder: Path, model: Path, *, inner: str = "") -> Path:
    """Copy an adapter as sentence-transformers saves it, with the modules of `model`."""
    shutil.copytree(adapter, folder / inner)
    for each in model.iterdir():
        if each.is_dir():
            shutil.copytree(each, folder / each.name)
    rows = json.loads((model / "modules.json").read_text())
    rows[0]["path"] = inner
    (folder / "modules.json").write_text(json.dumps(rows))
    return folder / inner


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_pooling_that_lies_with_an_adapter_decides(
    tiny: TinyModels, tmp_path, capsys, inner: str
) -> None:
    base = tiny.base("bert", FEATURES)
    model = save_sentences(base, tmp_path / "model", "cls_token", dense=12)
    plain = tiny.adapter(base, task=FEATURES, labels_count=None)
    mine = with_pooling(plain, tmp_path / "mine", model, inner=inner)
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={mine}",
                  "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    record = manifest_of(out)
    assert record["base"]["pooling"] == "cls, dense 32→12 Tanh, normalize"
    assert json.loads((out / "hf/modules.json").read_text())[0]["path"] == ""
    assert_intact(out)
    ids, mask = batch(left=False)
    with torch.inference_mode():
        states = peft_model(base, plain, FEATURES)(input_ids=ids, attention_mask=mask)
    held = load_file(model / "2_Dense" / "model.safetensors")
    wide = pooled("cls_token", states.last_hidden_state, mask)
    dense = torch.tanh(wide @ held["linear.weight"].double().T + held["linear.bias"].double())
    expected = torch.nn.functional.normalize(dense, dim=1)
    assert error(run(out, "mine", ids, mask), expected) < 1e-5
    assert call(capsys, "add", out, "--adapter", f"plain={plain}").code == 0
    assert call(capsys, "verify", out, "--base", base).code == 0

    other = save_sentences(base, tmp_path / "other", "mean_tokens")
    wrong = with_pooling(plain, tmp_path / "wrong", other)
    refused = call(capsys, "add", out, "--adapter", f"wrong={wrong}")
    assert refused.code == 4
    assert "adapter 'wrong' makes sentence embeddings by 'mean, normalize'" in refused.message
    both = call(capsys, "merge-and-build", "--base", base, "--adapter", f"mine={mine}", "--adapter",
                f"wrong={wrong}", "--out", tmp_path / "both")  # fmt: skip
    assert both.code == 4
    assert "adapter 'mine'" in both.message


def test_a_merged_checkpoint_has_the_modules_of_its_adapter(
    tiny: TinyModels, tmp_path, capsys
) -> None:
    base = tiny.base("bert", FEATURES)
    model = save_sentences(base, tmp_path / "model", "cls_token")
    plain = tiny.adapter(base, task=FEATURES, labels_count=None)
    mine = with_pooling(plain, tmp_path / "mine", model, inner="0_Transformer")
    out = tmp_path / "out"
    assert call(capsys, "merge", "--base", base, "--adapter", f"mine={mine}", "--out",
                out).code == 0  # fmt: skip
    assert json.loads((out / "modules.json").read_text())[0]["path"] == ""
    assert (out / "1_Pooling/config.json").is_file()
    result = call(capsys, "merge-and-build", "--base", out, "--out", tmp_path / "export")
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "export")["base"]["pooling"] == "cls, normalize"
