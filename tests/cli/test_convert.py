"""``adapter convert``: what others read from it, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError
from lora_export.runtime import open_export
from tests.cli.exports import peft_model, run_torch
from tests.cli.running import call, snapshot, stagings
from tests.helpers.builds import build
from tests.helpers.handmade import save_adapter, save_checkpoint
from tests.helpers.peft_files import pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

MODULE = "bert.encoder.layer.0.attention.self.query"
TASK = "text-classification"
FEEDS = {"input_ids": np.arange(3, 21).reshape(2, 9), "attention_mask": np.ones((2, 9), np.int64)}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = {**pair(MODULE, 8, 6), "base_model.model.classifier.weight": np.eye(3, dtype="f4")}
    return write_peft(tmp_path / "a", tensors, lora_alpha=3)


def test_to_peft_and_peft_agrees(tiny: TinyModels, tmp_path: Path, capsys) -> None:
    base = tiny.base("gpt2", "text-generation")
    original = tiny.adapter(base, task="text-generation", fan_in_fan_out=True, seed=3)
    out = tmp_path / "new" / "out"
    done = call(capsys, "adapter", "convert", original, "--to", "peft", "--out", out, "--base",
                base, "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.document["modules"] == 2
    assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    expected, found = (
        run_torch(peft_model(base, folder, "text-generation"), FEEDS) for folder in (original, out)
    )
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_to_onnx_adapter_drives_a_graph(adapter: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out" / "a.onnx_adapter"
    done = call(capsys, "adapter", "convert", adapter, "--to", "onnx_adapter", "--out", out,
                "--drop", "classifier.*", "--scale", 2)  # fmt: skip
    assert done.code == 0, done.err
    source = read_adapter(adapter, name="a", source="a").low_rank[0]
    a, b = (load_file(adapter / "adapter_model.safetensors")[f.name] for f in (source.a, source.b))
    held = load_file(out.with_suffix(".safetensors"))
    assert np.array_equal(held[f"{MODULE}.lora_A.weight"], a.T)
    assert np.allclose(held[f"{MODULE}.lora_B.weight"], 2 * 1.5 * b.T, rtol=1e-6)

    loaded = onnxruntime.LoraAdapter()
    loaded.Load(str(out))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(loaded)
    session = onnxruntime.InferenceSession(graph().SerializeToString())
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    (found,) = session.run(None, {"x": x}, options)
    assert np.allclose(found, 3.0 * x @ (b @ a).T, atol=1e-4)


def graph() -> onnx.ModelProto:
    """Return ``x A B`` with A and B as optional inputs of rank 0."""
    shapes = {f"{MODULE}.lora_A.weight": [8, "r"], f"{MODULE}.lora_B.weight": ["r", 6]}
    a, b = shapes
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in {"x": [4, 8], **shapes}.items()
    ]
    empty = [onnx.numpy_helper.from_array(np.zeros(s, np.float32), n)
             for n, s in ((a, (8, 0)), (b, (0, 6)))]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", a], ["h"]),
        helper.make_node("MatMul", ["h", b], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 6])
    body = helper.make_graph(nodes, "g", inputs, [output], empty)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.slow
def test_a_pack_for_an_export_is_the_one_that_add_makes(tiny, tmp_path, capsys) -> None:
    """DoRA, a head, names without the base's prefix: the export's graph decides about them."""
    base = tiny.base("roberta", TASK)
    room = tiny.adapter(base, seed=5, use_dora=True, labels_count=3)
    other = tiny.adapter(base, seed=6, use_dora=True, labels_count=2, r=3)
    export_dir = build(base, {"room": room}, tmp_path / "out", mode="swappable").output
    convert = ("adapter", "convert", other, "--to", "onnx_adapter", "--export", export_dir)
    pack = tmp_path / "packs" / "other.onnx_adapter"
    done = call(capsys, *convert, "--out", pack, "--json")
    assert done.code == 0, done.err
    assert done.document["files"] == [str(pack.with_suffix(".safetensors")), str(pack)]

    wanted = run_torch(peft_model(base, other, TASK, labels_count=2), FEEDS)
    loaded, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    loaded.Load(str(pack))
    options.add_active_adapter(loaded)
    graph = onnxruntime.InferenceSession(str(export_dir / "swappable.onnx"))
    assert_close(graph.run(["logits"], FEEDS, options)[0], wanted)
    with open_export(export_dir, adapters={"mine": pack}) as session:
        assert_close(session.run(FEEDS, adapter="mine")["logits"], wanted)

    assert call(capsys, "add", export_dir, "--adapter", f"other={other}").code == 0
    for file in (pack, pack.with_suffix(".safetensors")):
        assert file.read_bytes() == (export_dir / "adapters" / file.name).read_bytes()


@pytest.mark.slow
def test_a_pack_without_an_export_is_for_the_base_that_it_was_compared_with(
    tiny, tmp_path, capsys
) -> None:
    base = tiny.base("roberta", TASK)
    adapter = tiny.adapter(base, seed=7, labels_count=3)
    export_dir = build(base, {"a": adapter}, tmp_path / "out", mode="swappable").output
    convert = ("adapter", "convert", adapter, "--to", "onnx_adapter")
    bare, compared = tmp_path / "bare.onnx_adapter", tmp_path / "compared.onnx_adapter"
    assert call(capsys, *convert, "--out", bare).code == 0
    assert call(capsys, *convert, "--base", base, "--out", compared).code == 0
    with open_export(export_dir, adapters={"mine": compared}) as session:
        np.testing.assert_array_equal(
            session.run(FEEDS, adapter="mine")["logits"], session.run(FEEDS, adapter="a")["logits"]
        )
    with pytest.raises(AdapterError, match="does not say which base") as caught:
        open_export(export_dir, adapters={"mine": bare})
    assert "adapter convert ADAPTER --to onnx_adapter --export EXPORT" in str(caught.value.hint)


@pytest.mark.slow
def test_what_does_not_go_with_an_export_is_refused(tiny, tmp_path, capsys) -> None:
    base = tiny.base("roberta", TASK)
    adapter = tiny.adapter(base, seed=7, labels_count=3)
    export_dir = build(base, {"a": adapter}, tmp_path / "out").output
    out = tmp_path / "x.onnx_adapter"
    convert = ("adapter", "convert", adapter, "--export", export_dir, "--out", out, "--to")
    for code, arguments, message in (
        (2, ["peft"], "--export needs --to onnx_adapter"),
        (2, ["onnx_adapter", "--base", base], "--base"),
        (2, ["onnx_adapter", "--dtype", "float16"], "--dtype 'float16'"),
        (4, ["onnx_adapter"], "has no swappable graph"),
    ):
        refused = call(capsys, *convert, *arguments)
        assert refused.code == code, refused.err
        assert message in refused.message
    assert not out.exists()


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_to_edge_llm(adapter: Path, tmp_path: Path, capsys) -> None:
    command = ("adapter", "convert", adapter, "--to", "edge-llm", "--out", tmp_path / "out")
    refused = call(capsys, *command)
    assert refused.code == 4
    assert "classifier.weight" in refused.message
    assert not (tmp_path / "out").exists()
    done = call(capsys, *command, "--drop", "classifier.*")
    assert done.code == 0, done.err
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: value.shape for name, value in held.items()} == {
        f"{MODULE}.lora_A.weight": (8, 2),
        f"{MODULE}.lora_B.weight": (2, 6),
    }
    assert {value.dtype for value in held.values()} == {np.dtype(np.float16)}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)


def test_the_same_input_gives_the_same_bytes(adapter: Path, tmp_path: Path, capsys) -> None:
    for to, name in (("peft", "p"), ("onnx_adapter", "o.onnx_adapter")):
        for copy in ("1", "2"):
            call(capsys, "adapter", "convert", adapter, "--to", to, "--out", tmp_path / copy / name)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2") != {}


@pytest.mark.parametrize("to", ["peft", "edge-llm", "onnx_adapter"])
def test_what_is_there_is_never_overwritten(to: str, tmp_path: Path, capsys) -> None:
    source = save_adapter(tmp_path / "source")
    out = tmp_path / "out"
    if to == "onnx_adapter":
        out = tmp_path / "out.onnx_adapter"
        (tmp_path / "out.safetensors").write_text("mine")
    else:
        out.mkdir()
        (out / "note").write_text("mine")
    before = snapshot(tmp_path)
    done = call(capsys, "adapter", "convert", source, "--to", to, "--out", out)
    assert done.code == 3
    assert "exists already" in done.message
    assert snapshot(tmp_path) == before
    assert stagings(tmp_path) == []


def test_mistakes_have_their_exit_codes(adapter: Path, tmp_path: Path, capsys) -> None:
    def convert(*more: object) -> tuple[int, str]:
        done = call(capsys, "adapter", "convert", adapter, "--out", tmp_path / "out", *more)
        return done.code, done.err

    assert convert("--to", "gguf")[0] == 2
    assert "does not end in .onnx_adapter" in convert("--to", "onnx_adapter")[1]
    assert convert("--to", "peft", "--dtype", "float16")[0] == 2
    assert convert("--to", "peft", "--scale", "nan")[0] == 2
    assert convert("--to", "peft", "--drop", "nothing")[0] == 2
    base = save_checkpoint(tmp_path / "base")
    code, text = convert("--to", "peft", "--base", base)
    assert (code, "does not fit" in text) == (3, True)
    assert not (tmp_path / "out").exists()
