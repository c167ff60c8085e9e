from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.running import HEAVY, call, command
from tests.helpers.handmade import (
    BERT_SHAPES,
    save_adapter,
    save_checkpoint,
    save_export,
    shapes_of_lora,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Result

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return save_export(tmp_path / "export")


def test_checkpoint_as_json(capsys: Capture, base: Path) -> None:
    result = call(capsys, "inspect", base, "--json")
    assert result.code == 0
    assert result.err == ""
    found = result.document
    assert found["kind"] == "checkpoint"
    assert found["model_type"] == "bert"
    assert found["architectures"] == ["BertModel"]
    assert found["task"] == "feature-extraction"
    assert found["tensors"] == len(BERT_SHAPES) == 9
    assert found["parameters"] == 448
    assert found["bytes"] == 448 * 4
    assert found["dtypes"] == {"float32": 448 * 4}
    assert found["files"] == {"model.safetensors": (base / "model.safetensors").stat().st_size}
    assert found["labels"] is None
    assert found["fingerprint"] is None


def test_checkpoint_as_text(capsys: Capture, base: Path) -> None:
    result = call(capsys, "inspect", base)
    assert result.out.splitlines()[0] == f"checkpoint {base}"
    assert "  parameters    448 in 1.8 kB" in result.out.splitlines()


def test_labels_are_in_the_order_of_their_numbers(capsys: Capture, tmp_path: Path) -> None:
    names = {str(i): f"label-{i}" for i in (10, 2, 0, 1, *range(3, 10))}
    path = save_checkpoint(tmp_path / "base", id2label=names)
    labels = call(capsys, "inspect", path, "--json").document["labels"]
    assert labels == [f"label-{i}" for i in range(11)]


def test_index_tables_are_no_parameters(capsys: Capture, base: Path) -> None:
    save_file(
        {"a.weight": np.zeros((2, 2), np.float16), "position_ids": np.arange(7)},
        base / "model.safetensors",
    )
    found = call(capsys, "inspect", base, "--json").document
    assert found["parameters"] == 4
    assert found["dtypes"] == {"int64": 56, "float16": 8}


def test_shards_are_listed(capsys: Capture, base: Path) -> None:
    (base / "model.safetensors").unlink()
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, file in weight_map.items():
        save_file({name: np.zeros(3, np.float32)}, base / file)
    index = json.dumps({"weight_map": weight_map})
    (base / "model.safetensors.index.json").write_text(index, "utf-8")
    found = call(capsys, "inspect", base, "--json").document
    assert list(found["files"]) == ["model-1.safetensors", "model-2.safetensors"]
    assert found["parameters"] == 6


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        (["wte.weight"], {}, "no output embedding is stored"),
        (
            ["wte.weight", "lm_head.weight"],
            {"tie_word_embeddings": True},
            "lm_head.weight is stored",
        ),
        (["wte.weight", "lm_head.weight"], {"tie_word_embeddings": False}, None),
    ],
)
def test_tied_weights(
    capsys: Capture,
    tmp_path: Path,
    names: list[str],
    config: dict[str, bool],
    expected: str | None,
) -> None:
    path = save_checkpoint(
        tmp_path / "base",
        dict.fromkeys(names, (20, 8)),
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        **config,
    )
    tied = call(capsys, "inspect", path, "--json").document["tied"]
    assert (tied or "").startswith(expected) if expected else tied is None


def test_hash_of_a_checkpoint_is_its_fingerprint(capsys: Capture, base: Path) -> None:
    digest = call(capsys, "inspect", base, "--hash", "--json", "--quiet").document["fingerprint"]
    assert len(digest) == 64
    save_checkpoint(base, {"other.weight": (2, 2)})
    other = call(capsys, "inspect", base, "--hash", "--json", "--quiet").document["fingerprint"]
    assert other != digest


def test_adapter_as_json(capsys: Capture, tmp_path: Path) -> None:
    shapes = {**shapes_of_lora(), "base_model.model.classifier.weight": (3, 8)}
    path = save_adapter(tmp_path / "adapter", shapes)
    found = call(capsys, "inspect", path, "--json").document
    assert found["kind"] == "adapter"
    assert found["format"] == "peft"
    assert found["base"] == "some/base"
    assert found["ranks"] == {"2": 4}
    assert found["scales"] == {"2.0": 4}
    assert found["scale_rule"] == "alpha/r"
    assert found["saved"] == {"classifier.weight": [3, 8]}
    assert found["tensors"] == 9
    assert found["parameters"] == 4 * 32 + 24
    assert found["bytes"] == (4 * 32 + 24) * 4
    assert found["modules"][0] == {
        "pattern": "bert.encoder.layer.*.attention.self.query",
        "count": 2,
        "ranks": [2],
        "scales": [2.0],
    }


def row(result: Result, key: str) -> str:
    """Return the text beside `key` in the first line that begins with it."""
    line = next(line for line in result.out.splitlines() if line.startswith(f"  {key}  "))
    return line.removeprefix(f"  {key}").strip()


def test_modules_are_grouped_over_layers(capsys: Capture, adapter: Path) -> None:
    result = call(capsys, "inspect", adapter)
    assert row(result, "modules") == "query, value × 2 layers"
    assert row(result, "rank") == "2"
    assert row(result, "scale") == "2 (alpha/r)"


def test_names_that_repeat_are_told_apart(capsys: Capture, tmp_path: Path) -> None:
    names = ("output.dense", "attention.dense")
    modules = {f"encoder.layer.{i}.{name}": (8, 8) for i in range(2) for name in names}
    path = save_adapter(tmp_path / "adapter", shapes_of_lora(modules))
    assert (
        row(call(capsys, "inspect", path), "modules") == "attention.dense, output.dense × 2 layers"
    )


def test_ranks_and_scales_that_differ_are_shown(capsys: Capture, tmp_path: Path) -> None:
    shapes = shapes_of_lora({"layer.0.query": (8, 8), "layer.1.query": (8, 8)})
    shapes |= shapes_of_lora({"layer.0.value": (8, 8), "layer.1.value": (8, 8)}, rank=4)
    path = save_adapter(
        tmp_path / "adapter", shapes, rank_pattern={"value": 4}, use_rslora=True, lora_alpha=4
    )
    result = call(capsys, "inspect", path)
    assert row(result, "rank") == "2 (2 modules), 4 (2 modules)"
    assert row(result, "scale") == "2.82843 (2 modules), 2 (2 modules) (alpha/sqrt(r))"
    assert row(result, "modules") == "query × 2 layers: rank 2, scale 2.82843"


def test_a_pair_that_fits(capsys: Capture, base: Path, adapter: Path) -> None:
    result = call(capsys, "inspect", base, adapter, "--json")
    assert result.code == 0
    found = result.document["fit"]
    assert found["fits"] is True
    assert found["how"] == "by names and shapes (headers only; not a proof)"
    assert found["matched"] == found["tensors"] == 8
    assert found["trained_share"] == pytest.approx(128 / 448)
    assert found["changed_share"] == pytest.approx(256 / 448)
    assert found["changed_bytes"] == 256 * 4
    assert result.document["base"]["kind"] == "checkpoint"
    assert result.document["adapter"]["kind"] == "adapter"


def test_a_pair_that_does_not_fit(capsys: Capture, base: Path, tmp_path: Path) -> None:
    modules = {f"bert.encoder.layer.{i}.attention.self.query": (8, 16) for i in range(12)}
    path = save_adapter(tmp_path / "adapter", shapes_of_lora(modules))
    result = call(capsys, "inspect", base, path)
    assert result.code == 3
    lines = result.out.splitlines()
    assert "does not fit by names and shapes (headers only; not a proof)" in lines
    assert sum(line.startswith("  mismatch ") for line in lines) == 9
    assert lines[-1].endswith("… and 4 more")
    assert call(capsys, "inspect", base, path, "--json").code == 3


def test_a_pair_with_an_export_as_base(capsys: Capture, export: Path, tmp_path: Path) -> None:
    shapes = {**shapes_of_lora(), "base_model.model.classifier.weight": (5, 8)}
    path = save_adapter(tmp_path / "adapter", shapes)
    found = call(capsys, "inspect", export, path, "--json")
    assert found.code == 0
    assert found.document["base"]["kind"] == "export"
    assert found.document["fit"]["prefix"] == "bert."
    assert found.document["fit"]["brought"] == ["classifier.weight"]


def test_the_wrong_order_is_a_usage_error(capsys: Capture, base: Path, adapter: Path) -> None:
    result = call(capsys, "inspect", adapter, base)
    assert result.code == 2
    assert "BASE ADAPTER" in result.message


def test_export_as_json(capsys: Capture, export: Path) -> None:
    result = call(capsys, "inspect", export, "--json")
    assert result.code == 0
    found = result.document
    assert found["kind"] == "export"
    assert found["base"]["task"] == "text-classification"
    assert found["parameters"] == 448
    assert found["graphs"]["a"]["verification"] == "pass"
    own = (export / "weights" / "a.safetensors").stat().st_size
    shared = (export / "weights" / "base.safetensors").stat().st_size
    assert found["graphs"]["a"]["own_weights_bytes"] == own
    assert found["graphs"]["a"]["weights_bytes"] == own + shared
    assert found["adapters"]["a"]["tensors_applied"] == 8
    assert found["problems"] == found["unlisted"] == []


def test_export_as_text(capsys: Capture, export: Path) -> None:
    result = call(capsys, "inspect", export)
    assert row(result, "files").startswith("4 in the manifest")
    assert "not deployable" in row(result, "base  base")
    assert "rank 2  8 of 8 tensors applied" in result.out


def test_a_changed_file_is_found_by_its_hash_only(capsys: Capture, export: Path) -> None:
    graph = export / "a.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    assert call(capsys, "inspect", export).code == 0
    result = call(capsys, "inspect", export, "--hash", "--json", "--quiet")
    assert result.code == 3
    (problem,) = result.document["problems"]
    assert problem.startswith("a.onnx: SHA-256 is ")


def test_right_hashes(capsys: Capture, export: Path) -> None:
    result = call(capsys, "inspect", export, "--hash")
    assert result.code == 0
    assert "every SHA-256 is right" in result.out


@pytest.mark.parametrize("name", ["a.onnx", "weights/a.safetensors"])
def test_a_missing_file_is_named(capsys: Capture, export: Path, name: str) -> None:
    (export / name).unlink()
    result = call(capsys, "inspect", export)
    assert result.code == 3
    assert f"damaged: {name}: missing" in result.out.splitlines()


def test_a_truncated_weight_file_is_found_without_hashing(capsys: Capture, export: Path) -> None:
    weights = export / "weights" / "a.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    result = call(capsys, "inspect", export, "--json")
    assert result.code == 3
    assert "weights/a.safetensors" in result.document["problems"][0]


def test_files_that_the_manifest_does_not_name_are_listed(capsys: Capture, export: Path) -> None:
    (export / "notes.txt").write_text("mine", "utf-8")
    (export / ".lora_export.lock").touch()
    result = call(capsys, "inspect", export, "--json")
    assert result.code == 0
    assert result.document["unlisted"] == ["notes.txt"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("path", "damage", "says"),
    [
        ("nothing", None, "there is nothing at"),
        ("base/config.json", None, "is a file"),
        ("empty", None, "is neither a checkpoint, an adapter nor an export"),
        ("base", ("config.json", Path.unlink), "config.json is not: copy it"),
        ("adapter", ("adapter_config.json", Path.unlink), "adapter_config.json is not: copy it"),
        ("adapter", ("adapter_model.safetensors", Path.unlink), "has no adapter_model.safetensors"),
        ("base", ("model.safetensors", cut), "is not a valid safetensors file"),
        ("adapter", ("adapter_model.safetensors", cut), "is not a valid safetensors file"),
        ("export", ("lora_export.json", cut), "is damaged"),
    ],
)
@pytest.mark.usefixtures("base", "adapter", "export")
def test_bad_input_is_one_message_and_exit_3(
    capsys: Capture,
    tmp_path: Path,
    path: str,
    damage: tuple[str, Callable[[Path], None]] | None,
    says: str,
) -> None:
    (tmp_path / "empty").mkdir()
    if damage:
        file, harm = damage
        harm(tmp_path / path / file)
    result = call(capsys, "inspect", tmp_path / path)
    assert result.code == 3
    assert result.out == ""
    assert says in result.message
    as_json = call(capsys, "inspect", tmp_path / path, "--json")
    assert as_json.document["error"]["message"] in as_json.err


def test_nothing_heavy_is_needed(base: Path, adapter: Path) -> None:
    result = command("inspect", base, adapter, "--json", without=[*HEAVY, "onnxruntime"])
    assert result.code == 0, result.err
    assert result.document["fit"]["fits"] is True


def test_a_folder_with_base_and_adapter_is_both(capsys: Capture, base: Path, adapter: Path) -> None:
    for file in adapter.iterdir():
        shutil.copy(file, base)
    assert call(capsys, "inspect", base, "--json").document["kind"] == "adapter"
    assert call(capsys, "inspect", base, base, "--json").document["fit"]["fits"] is True
