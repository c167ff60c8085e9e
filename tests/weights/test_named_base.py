"""The base that an adapter names by its folder, compared with the one that is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.adapters.canonical import Adapter
from lora_export.commands.adapter_notes import opened_base
from lora_export.core.progress import Silent
from lora_export.weights import named_base
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.fingerprint import fingerprint
from lora_export.weights.named_base import GivenBase, note_on_named_folder
from tests.cli.running import call
from tests.helpers.handmade import save_adapter, save_checkpoint

WEIGHTS = "model.safetensors"
QUERY = "encoder.layer.1.attention.self.query.weight"


def changed(folder: Path, change: Any) -> Path:
    """Save the weights of a checkpoint anew, changed; return the folder."""
    path = folder / WEIGHTS
    save_file({k: np.ascontiguousarray(v) for k, v in change(load_file(path)).items()}, path)
    return folder


def other_last_value(tensors: dict[str, Any]) -> dict[str, Any]:
    tensors[QUERY][-1, -1] += 1
    return tensors


CHANGES: dict[str, tuple[Any, str]] = {
    "the last value": (other_last_value, f"other values in '{QUERY}'"),
    "another dtype": (
        lambda tensors: {k: v.astype(np.float16) for k, v in tensors.items()},
        "other values or dtype: 'embeddings.word_embeddings.weight' is float16 there and float32",
    ),
    "another shape": (
        lambda tensors: {**tensors, QUERY: tensors[QUERY][:4]}, f"'{QUERY}' is [4, 8] there"
    ),
    "one tensor more": (
        lambda tensors: {**tensors, "more.weight": tensors[QUERY]}, "the named base has 'more"
    ),
    "one tensor less": (
        lambda tensors: {k: v for k, v in tensors.items() if k != QUERY}, "the given base has"
    ),
}  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "given")


def note(named: object, given: Path, *, folder: Path = Path("/nowhere"), **more: Any) -> str | None:
    adapter = Adapter("a", "the/adapter", folder, "peft", (), (), None, named, "", {})  # type: ignore[arg-type]
    base = opened_base(open_checkpoint(given))
    return note_on_named_folder(adapter, base, Silent(), **more)


@pytest.mark.parametrize("change", CHANGES)
def test_another_base_is_noted_with_the_first_difference(change, given, tmp_path) -> None:
    edit, word = CHANGES[change]
    named = changed(shutil.copytree(given, tmp_path / "named"), edit)
    found = note(str(named), given)
    assert found is not None
    for part in (word, repr(str(named)), repr(str(given)), "'the/adapter'"):
        assert part in found
    headers_only = note(str(named), given, values=False)
    assert (headers_only is None) == (change == "the last value")


def test_a_copy_the_folder_itself_and_a_link_are_the_same_base(
    given, tmp_path, monkeypatch
) -> None:
    copy = shutil.copytree(given, tmp_path / "copy")
    assert note(str(copy), given) is None

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(named_base, "_value_difference", refuse)
    (tmp_path / "link").symlink_to(given)
    linked = tmp_path / "linked"
    linked.mkdir()
    shutil.copy(given / "config.json", linked)
    (linked / WEIGHTS).symlink_to(given / WEIGHTS)
    for named in (given, tmp_path / "link", linked, tmp_path / "copy" / ".." / "given"):
        assert note(str(named), given) is None, named


def test_a_value_far_into_a_tensor_is_found(tmp_path) -> None:
    shapes = {"embeddings.word_embeddings.weight": (30_000, 8)}
    given = save_checkpoint(tmp_path / "given", shapes)

    def edit(tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["embeddings.word_embeddings.weight"][-1, -1] += 1
        return tensors

    named = changed(shutil.copytree(given, tmp_path / "named"), edit)
    assert "other values" in str(note(str(named), given))


def test_a_relative_folder_is_looked_up_here_and_beside_the_adapter(
    given, tmp_path, monkeypatch
) -> None:
    here, adapter = tmp_path / "here", tmp_path / "adapter"
    for place in (here, adapter):
        changed(shutil.copytree(given, place / "bases" / "one"), other_last_value)
    monkeypatch.chdir(here)
    assert "in the current folder" in str(note("bases/one", given, folder=adapter))
    monkeypatch.chdir(tmp_path)
    assert "in the adapter's folder" in str(note("bases/one", given, folder=adapter))
    shutil.copytree(given, tmp_path / "bases" / "one")
    assert note("bases/one", given, folder=adapter) is None  # one of the two is the given one


@pytest.mark.parametrize("named", [None, 7, "", "no/such/folder", "a\0b", "x" * 5000, "org/name"])
def test_what_is_no_folder_here_is_left_alone(named, given) -> None:
    assert note(named, given) is None


def test_a_quantized_or_damaged_base_is_left_alone(given, tmp_path) -> None:
    named = changed(
        shutil.copytree(given, tmp_path / "named"),
        lambda tensors: {k: v.astype(np.int8) if k == QUERY else v for k, v in tensors.items()},
    )
    config = json.loads((named / "config.json").read_text())
    settings = {"quant_method": "gptq", "bits": 8}
    (named / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    assert note(str(named), given) is None
    (named / "config.json").write_text("{")
    assert note(str(named), given) is None


def test_of_an_export_the_fingerprint_is_compared(given, tmp_path) -> None:
    adapter = Adapter("a", "s", tmp_path, "peft", (), (), None, str(given), "", {})
    right = fingerprint(open_checkpoint(given))
    same = GivenBase("s", None, fingerprint=right)
    assert note_on_named_folder(adapter, same, Silent()) is None
    other = GivenBase("s", None, fingerprint="0" * 64)
    assert "fingerprint" in str(note_on_named_folder(adapter, other, Silent()))
    assert note_on_named_folder(adapter, GivenBase("s", None, folder=given), Silent()) is None


def test_merge_and_inspect_note_it_and_strict_refuses(given, tmp_path, capsys) -> None:
    named = changed(shutil.copytree(given, tmp_path / "named"), other_last_value)
    adapter = save_adapter(tmp_path / "a", base_model_name_or_path=str(named))
    arguments = ("merge", "--base", given, "--adapter", adapter, "--out")
    result = call(capsys, *arguments, tmp_path / "out", "--json")
    assert result.code == 0
    (found,) = result.document["notes"]
    assert f"other values in '{QUERY}'" in found
    assert f"note: {found}" in result.err
    record = json.loads((tmp_path / "out" / "lora_export.merge.json").read_text())
    assert record["notes"] == [found]
    strict = call(capsys, *arguments, tmp_path / "strict", "--strict")
    assert strict.code == 3
    assert "names the base" in strict.message
    assert not (tmp_path / "strict").exists()
    right = call(capsys, "merge", "--base", named, "--adapter", adapter, "--out",
                 tmp_path / "right", "--strict", "--json")  # fmt: skip
    assert (right.code, right.document["notes"]) == (0, [])
    assert call(capsys, "inspect", given, adapter, "--json").document["fit"]["note"] is None
    hashed = call(capsys, "inspect", given, adapter, "--hash", "--json")
    assert hashed.document["fit"]["note"] == found


def test_several_adapters_of_one_sum_are_each_compared(given, tmp_path, capsys) -> None:
    named = changed(shutil.copytree(given, tmp_path / "named"), other_last_value)
    one = save_adapter(tmp_path / "one", base_model_name_or_path=str(given))
    two = save_adapter(tmp_path / "two", base_model_name_or_path=str(named))
    result = call(capsys, "merge", "--base", given, "--adapter", one, "--adapter", two, "--combine",
                  "cat", "--out", tmp_path / "out", "--json")  # fmt: skip
    (found,) = result.document["notes"]
    assert repr(str(two)) in found
