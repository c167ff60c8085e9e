"""Exports in another dtype than their base's, extended with the base and without it."""

from __future__ import annotations

import numpy as np

from lora_export.commands.add import add
from lora_export.core.manifest import read_manifest
from tests.exports.merged_adapters.example import TASK, files_of, spec
from tests.helpers.builds import build, file_hashes, merged_by_peft, read_graph
from tests.helpers.peft_files import write_peft


def test_a_cast_export_extended_with_its_base_is_bit_identical(base, one, two, tmp_path):
    export_dir = build(base, {"one": one}, tmp_path / "out", dtype="float16").output
    both = build(base, {"one": one, "two": two}, tmp_path / "both", dtype="float16").output
    manifest = add(export_dir, [spec("two", two)], base=base).manifest
    assert manifest.adapters["two"].merged_from == "checkpoint"
    assert file_hashes(export_dir) == file_hashes(both)


def test_a_cast_export_extended_without_its_base_says_so(base, one, two, tmp_path):
    export_dir = build(base, {"one": one}, tmp_path / "out", dtype="float16").output
    manifest = add(export_dir, [spec("two", two)]).manifest
    assert manifest.adapters["two"].merged_from == "export"
    assert manifest.adapters["one"].merged_from == "checkpoint"
    # Merged from the rounded base: near, and recorded as not the same.
    both = build(base, {"one": one, "two": two}, tmp_path / "both", dtype="float16").output
    assert files_of(export_dir, "two")[1] != files_of(both, "two")[1]
    expected = merged_by_peft(base, two, TASK)
    for name, values in read_graph(export_dir, "two").items():
        np.testing.assert_allclose(
            values.astype(np.float64), expected[name], rtol=3e-3, atol=1e-3, err_msg=name
        )


def test_an_adapter_of_saved_parameters_only_is_exact_without_the_base(base, one, tmp_path):
    export_dir = build(base, {"one": one}, tmp_path / "out", dtype="float16").output
    head = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    folder = write_peft(
        tmp_path / "head",
        {
            "base_model.model.classifier.weight": head,
            "base_model.model.classifier.bias": np.zeros(4, np.float32),
        },
    )
    manifest = add(export_dir, [spec("head", folder)]).manifest
    assert manifest.adapters["head"].merged_from == "checkpoint"
    found = read_graph(export_dir, "head")["classifier.weight"]
    np.testing.assert_array_equal(found, head.astype(np.float16))


def test_a_bfloat16_base_becomes_float16_for_a_target_without_it(tiny, tmp_path):
    brain = tiny.base("bert", TASK, dtype="bfloat16")
    adapter = tiny.adapter(brain, seed=11)
    export_dir = build(brain, {"one": adapter}, tmp_path / "out").output
    manifest = read_manifest(export_dir)
    assert manifest.base.dtype == "float16"
    assert manifest.adapters["one"].merged_from == "checkpoint"
    expected = merged_by_peft(brain, adapter, TASK)
    for name, values in read_graph(export_dir, "one").items():
        nearest = expected[name].astype(np.float32).astype(np.float16)
        assert np.mean(values != nearest) < 0.01, name
