"""Replaced and removed adapters leave the export as if they had never been there."""

from __future__ import annotations

import pytest

from lora_export.commands.add import add
from lora_export.commands.remove import remove
from lora_export.core.errors import AdapterError
from tests.exports.merged_adapters.example import files_of, intact, spec
from tests.helpers.builds import build, file_hashes


def test_a_taken_name_is_refused_and_nothing_changes(export_dir, two):
    before = file_hashes(export_dir)
    with pytest.raises(AdapterError, match="already holds an adapter 'one'") as caught:
        add(export_dir, [spec("one", two)])
    assert "--replace" in (caught.value.hint or "")
    assert file_hashes(export_dir) == before


def test_a_replaced_adapter_is_the_new_one(export_dir, base, two, tmp_path):
    add(export_dir, [spec("one", two)], replace=True)
    fresh = build(base, {"one": two}, tmp_path / "fresh").output
    assert files_of(export_dir, "one") == files_of(fresh, "one")
    assert file_hashes(export_dir) == file_hashes(fresh)
    assert intact(export_dir)


def test_an_adapter_that_is_replaced_is_not_verified_any_more(base, one, two, tmp_path):
    outcome = build(base, {"one": one}, tmp_path / "out", verify={"enabled": True})
    assert outcome.manifest.graphs["one"].verification == "pass"
    updated = add(outcome.output, [spec("one", two)], replace=True).manifest
    assert updated.graphs["one"].verification == "unverified"
    assert updated.graphs["one"].golden is None
    assert updated.graphs["base"].verification == "pass"
    assert intact(outcome.output)  # the golden outputs of the old one are gone too


def test_a_removed_adapter_leaves_the_export_as_it_was_before(export_dir, two):
    before = file_hashes(export_dir)
    add(export_dir, [spec("two", two)])
    assert file_hashes(export_dir) != before
    remove(export_dir, "two")
    assert file_hashes(export_dir) == before
    assert intact(export_dir)


def test_removing_the_only_adapter_leaves_the_base(export_dir):
    manifest = remove(export_dir, "one").manifest
    assert manifest.adapters == {}
    assert list(manifest.graphs) == ["base"]
    assert not (export_dir / "one.onnx").exists()
    assert not (export_dir / "weights/one.safetensors").exists()
    assert intact(export_dir)


def test_what_is_not_there_cannot_be_removed(export_dir):
    before = file_hashes(export_dir)
    with pytest.raises(AdapterError, match="has no adapter 'two'") as caught:
        remove(export_dir, "two")
    assert "one" in (caught.value.hint or "")
    assert file_hashes(export_dir) == before


@pytest.mark.parametrize("name", ["base", "../one", "", "/etc/passwd"])
def test_what_is_no_adapters_name_cannot_be_removed(export_dir, name):
    before = file_hashes(export_dir)
    with pytest.raises(AdapterError):
        remove(export_dir, name)
    assert file_hashes(export_dir) == before


def test_a_verified_adapter_is_removed_with_its_golden_outputs(base, one, tmp_path):
    export_dir = build(base, {"one": one}, tmp_path / "out", verify={"enabled": True}).output
    assert (export_dir / "golden/one.npz").is_file()
    remove(export_dir, "one")
    assert not (export_dir / "golden/one.npz").exists()
    assert (export_dir / "golden/base.npz").is_file()
    assert intact(export_dir)


def test_building_again_replaces_its_own_adapters_and_keeps_the_others(export_dir, base, one, two):
    before = file_hashes(export_dir)
    add(export_dir, [spec("two", two)])
    outcome = build(base, {"one": two}, export_dir)
    assert set(outcome.manifest.adapters) == {"one", "two"}
    assert files_of(export_dir, "one")[1] != (export_dir / "one.onnx").read_bytes()
    assert file_hashes(export_dir)["weights/base.safetensors"] == before["weights/base.safetensors"]
    build(base, {"one": one}, export_dir)
    remove(export_dir, "two")
    assert file_hashes(export_dir) == before
