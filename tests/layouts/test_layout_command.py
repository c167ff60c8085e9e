"""``layout`` as a user runs it: what is written, what is refused, what is left where it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lora_export.core.files import sha256_of_file
from lora_export.layouts import write_layouts
from lora_export.layouts.runtime_names import RUNTIME_NAMES
from lora_export.layouts.runtimes import RUNTIMES
from lora_export.runtime import open_export
from tests.cli.running import call, snapshot, stagings
from tests.helpers.builds import build

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD = "lora_export_layout.json"
IDS = np.random.default_rng(4).integers(3, 200, (2, 6))


def feeds() -> dict[str, Any]:
    past = np.zeros((2, 2, 0, 8), np.float32)
    return {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        "position_ids": np.arange(6)[None].repeat(2, 0),
        **{f"past_key_values.{at}.{what}": past for at in (0, 1) for what in ("key", "value")},
    }


def outputs(graph: Path, values: Mapping[str, Any] | None = None) -> Any:
    """Run a graph as a program without lora-export does, external data included."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options)
    return session.run(["logits"], {**feeds(), **(values or {})})[0]


def expected(export: Path, adapter: str | None) -> Any:
    with open_export(export) as session:
        return session.run(feeds(), adapter=adapter)["logits"]


def test_each_name_of_the_command_line_has_a_row():
    assert tuple(RUNTIMES) == RUNTIME_NAMES


def test_merged_adapters_have_a_directory_each(decoders, tmp_path, capsys):
    result = call(capsys, "layout", decoders["merged"], "--for", "genai", "-o", tmp_path / "g",
                  "--json")  # fmt: skip
    assert result.code == 0
    assert "bytes on disk" in result.err
    assert sorted(each.name for each in (tmp_path / "g").iterdir()) == ["a", "b"]
    for row, name in zip(result.document["folders"], ("a", "b"), strict=True):
        folder = tmp_path / "g" / name
        assert (row["folder"], row["adapters"]) == (str(folder), [name])
        onnx.load(folder / "model.onnx")  # the library refuses hard links
        onnx.checker.check_model(str(folder / "model.onnx"))
        np.testing.assert_array_equal(
            outputs(folder / "model.onnx"), expected(decoders["merged"], name)
        )
        record = json.loads((folder / RECORD).read_text())
        held = {
            each.relative_to(folder).as_posix(): each
            for each in folder.rglob("*")
            if each.is_file()
        }
        assert held.keys() - {RECORD} == record["files"].keys() == set(row["files"])
        for file, path in held.items():
            assert path.stat().st_nlink == 1
            if file != RECORD:
                known = record["files"][file]
                assert known == {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


@pytest.mark.parametrize("name", ["b", "base"])
def test_one_adapter_or_the_base_fills_the_directory(decoders, tmp_path, capsys, name):
    folder = tmp_path / "one"
    words = ("layout", decoders["merged"], "--for", "genai", "--adapter", name, "-o", folder)
    assert call(capsys, *words).code == 0
    adapter = None if name == "base" else name
    assert json.loads((folder / RECORD).read_text())["adapters"] == ([name] if adapter else [])
    np.testing.assert_array_equal(
        outputs(folder / "model.onnx"), expected(decoders["merged"], adapter)
    )


def test_the_same_export_gives_the_same_bytes(decoders, tmp_path, capsys):
    for name in ("one", "two"):
        assert call(capsys, "layout", decoders["merged"], "--for", "genai", "--adapter", "a",
                    "-o", tmp_path / name).code == 0  # fmt: skip
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_swappable_export_keeps_its_packs(decoders, tmp_path, capsys):
    folder = tmp_path / "all"
    result = call(capsys, "layout", decoders["swappable"], "--for", "genai", "-o", folder, "--json")
    assert result.code == 0
    assert result.document["folders"][0]["adapters"] == ["a", "b"]
    np.testing.assert_array_equal(
        outputs(folder / "model.onnx"), expected(decoders["swappable"], None)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    for name in ("a", "b"):
        pack = onnxruntime.LoraAdapter()
        pack.Load(str(folder / "adapters" / f"{name}.onnx_adapter"))
        run = onnxruntime.RunOptions()
        run.add_active_adapter(pack)
        found = session.run(["logits"], feeds(), run)[0]
        np.testing.assert_allclose(
            found, expected(decoders["swappable"], name), rtol=1e-5, atol=1e-6
        )


def test_an_adapter_of_a_swappable_export_is_fixed_in_its_graph(decoders, tmp_path, capsys):
    folder = tmp_path / "b"
    words = ("layout", decoders["swappable"], "--for", "genai", "--adapter", "b", "-o", folder)
    assert call(capsys, *words).code == 0
    graph = onnx.load(folder / "model.onnx").graph
    assert not {each.name for each in graph.input} & {each.name for each in graph.initializer}
    assert not (folder / "adapters").exists()
    np.testing.assert_allclose(
        outputs(folder / "model.onnx"), expected(decoders["swappable"], "b"), rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(outputs(folder / "model.onnx"), expected(decoders["swappable"], "a"))


@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_quantized_values_go_along(tiny, tmp_path, capsys, mode):
    base = tiny.base("llama", "text-generation", tokenizer=True)
    adapters = {"a": tiny.adapter(base, task="text-generation", seed=1)}
    export = build(base, adapters, tmp_path / "out", mode=mode, task="text-generation",
                   quantize={"weights": "int4", "block_size": 16}).output  # fmt: skip
    folder = tmp_path / "g"
    assert (
        call(capsys, "layout", export, "--for", "genai", "--adapter", "a", "-o", folder).code == 0
    )
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    kinds = {each.data_type for each in graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    np.testing.assert_allclose(
        outputs(folder / "model.onnx"), expected(export, "a"), rtol=1e-5, atol=1e-6
    )


def test_a_directory_that_is_there_is_replaced_only_if_asked(decoders, tmp_path, capsys):
    words = ("layout", decoders["merged"], "--for", "genai", "-o", tmp_path / "g")
    assert call(capsys, *words, "--adapter", "a").code == 0
    before = snapshot(tmp_path)
    result = call(capsys, *words)
    assert (result.code, "--replace" in result.message) == (3, True)
    assert snapshot(tmp_path) == before
    assert call(capsys, *words, "--replace").code == 0
    assert sorted(each.name for each in (tmp_path / "g").iterdir()) == ["a", "b"]
    assert call(capsys, *words, "--replace", "--adapter", "a").code == 0
    assert snapshot(tmp_path) == before
    assert not stagings(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "genai_config.json").write_text("{}"), "genai_config.json"),
        (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda folder: (folder / "x").symlink_to("/"), "x"),
        (lambda folder: (folder / RECORD).unlink(), "not written by lora-export layout"),
        (lambda folder: (folder / RECORD).write_text("[]"), RECORD),
    ],
)  # fmt: skip
def test_what_is_not_ours_is_not_replaced(decoders, tmp_path, capsys, spoil, named):
    words = ("layout", decoders["merged"], "--for", "genai", "--adapter", "a", "-o", tmp_path / "g")
    assert call(capsys, *words).code == 0
    spoil(tmp_path / "g")
    before = snapshot(tmp_path)
    result = call(capsys, *words, "--replace")
    assert (result.code, named in result.message) == (3, True), result.err
    assert snapshot(tmp_path) == before


def test_an_export_is_not_replaced_nor_written_into(decoders, tmp_path, capsys):
    export = Path(shutil.copytree(decoders["merged"], tmp_path / "out"))
    before = snapshot(tmp_path)
    for place in (export, export / "genai", tmp_path):
        result = call(capsys, "layout", export, "--for", "genai", "-o", place, "--replace")
        assert result.code == 2, result.err
    other = Path(shutil.copytree(decoders["merged"], tmp_path / "other"))
    assert call(capsys, "layout", export, "--for", "genai", "-o", other, "--replace").code == 3
    shutil.rmtree(other)
    assert snapshot(tmp_path) == before


def test_an_adapter_that_is_not_there_is_named_with_those_that_are(decoders, tmp_path, capsys):
    words = ("layout", decoders["merged"], "--for", "genai", "-o", tmp_path / "g")
    result = call(capsys, *words, "--adapter", "c")
    assert result.code == 2
    assert "'c'" in result.message
    assert "It has: a, b, base." in result.err
    unknown = call(capsys, "layout", decoders["merged"], "--for", "gena", "-o", tmp_path / "g")
    assert (unknown.code, "'genai'" in unknown.err) == (2, True)
    assert not (tmp_path / "g").exists()


def test_a_row_of_a_batched_graph_is_refused_and_its_base_is_not(decoders, tmp_path, capsys):
    words = ("layout", decoders["batched"], "--for", "genai", "-o", tmp_path / "g")
    result = call(capsys, *words)
    assert (result.code, "batched" in result.message) == (4, True)
    assert call(capsys, *words, "--adapter", "base").code == 0


def test_a_damaged_weight_file_is_found_and_nothing_is_left(decoders, tmp_path, capsys):
    export = Path(shutil.copytree(decoders["merged"], tmp_path / "out"))
    path = export / "weights/base.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    before = snapshot(tmp_path)
    result = call(capsys, "layout", export, "--for", "genai", "-o", tmp_path / "g")
    assert (result.code, "weights/base.safetensors" in result.message) == (3, True)
    assert snapshot(tmp_path) == before


def test_companions_may_be_edited_but_not_damaged(decoders, tmp_path, capsys):
    export = Path(shutil.copytree(decoders["merged"], tmp_path / "out"))
    words = ("layout", export, "--for", "genai", "--adapter", "a", "-o", tmp_path / "g")
    path = export / "hf/tokenizer.json"
    whole = path.read_text()
    path.write_text(f"{whole}\n")
    result = call(capsys, *words)
    assert (result.code, "note: hf/tokenizer.json" in result.err) == (0, True)
    assert (tmp_path / "g/tokenizer.json").read_text() == f"{whole}\n"
    path.write_text(whole[: len(whole) // 2])
    damaged = call(capsys, *words, "--replace")
    assert (damaged.code, "tokenizer.json" in damaged.message) == (3, True)
    assert (tmp_path / "g/tokenizer.json").read_text() == f"{whole}\n"


def test_too_little_room_is_said_before_anything_is_written(
    decoders, tmp_path, capsys, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = call(capsys, "layout", decoders["merged"], "--for", "genai", "-o", tmp_path / "x/g")
    assert (result.code, "1,000 are free" in result.message) == (3, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_run_leaves_what_was_there(decoders, tmp_path, capsys, monkeypatch, there):
    words = ("layout", decoders["merged"], "--for", "genai", "-o", tmp_path / "g")
    if there:
        assert call(capsys, *words).code == 0
    before = snapshot(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write_layouts, "_write_values", stop)
    assert call(capsys, *words, "--replace").code == 130
    assert snapshot(tmp_path) == before
    assert not stagings(tmp_path)
