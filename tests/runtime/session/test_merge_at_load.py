"""A session merges an adapter at load: the graph that ``add`` writes, bit for bit."""

from __future__ import annotations

import gc
import shutil

import numpy as np
import pytest

from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.exports.at_load import merged_values
from lora_export.exports.outside_adapter import resolve_source
from lora_export.runtime import open_export
from lora_export.runtime.ort import OrtRunner
from tests.cli.exports import peft_model, run_graph, run_torch
from tests.helpers.builds import build
from tests.runtime.session.example import CLOSE, FEEDS, TASK


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "key", "dense"], "r": 3},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": ["word_embeddings", "value"]},
    ],
    ids=["linear", "dora", "biases", "embedding"],
)
def test_merged_at_load_is_the_graph_that_add_writes_bit_for_bit(
    tiny, base, export, tmp_path, settings
):
    adapter = tiny.adapter(base, seed=31, **settings)
    with open_export(export, adapters={"new": adapter}) as session:
        assert session.ways("new") == ("merge_at_load",)
        (found,) = session.run(FEEDS, adapter="new").values()
    export_dir = shutil.copytree(export, tmp_path / "out")
    add(export_dir, [AdapterSpec(name="new", source=str(adapter))])
    assert np.array_equal(found, run_graph(export_dir, "new", FEEDS))
    expected = run_torch(peft_model(base, adapter, TASK, labels_count=3), FEEDS)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert not np.allclose(found, run_graph(export_dir, "base", FEEDS), **CLOSE)


def test_of_a_head_that_the_base_lacks_only_adapters_can_be_run(tiny, tmp_path):
    bare = tiny.base("bert", "feature-extraction")
    first, second = (tiny.adapter(bare, seed=s, modules_to_save=["classifier"]) for s in (1, 2))
    export_dir = build(bare, {"first": first}, tmp_path / "out", task=TASK).output
    with open_export(export_dir, adapters={"second": second}) as session:
        with pytest.raises(UnsupportedError, match=r"classifier\.weight.*only adapters") as caught:
            session.run(FEEDS)
        assert "first, second" in (caught.value.hint or "")
        (found,) = session.run(FEEDS, adapter="second").values()
    add(export_dir, [AdapterSpec(name="second", source=str(second))])
    assert np.array_equal(found, run_graph(export_dir, "second", FEEDS))


def test_a_cast_export_is_merged_as_add_without_the_base_does(tiny, base, tmp_path):
    half = tiny.base("bert", TASK, dtype="float16")
    first, second = tiny.adapter(half, seed=1), tiny.adapter(half, seed=2)
    export_dir = build(half, {"first": first}, tmp_path / "out", dtype="float32").output
    with open_export(export_dir, adapters={"second": second}) as session:
        (found,) = session.run(FEEDS, adapter="second").values()
    add(export_dir, [AdapterSpec(name="second", source=str(second))])
    assert np.array_equal(found, run_graph(export_dir, "second", FEEDS))


def test_merged_values_are_let_go_once_the_session_is_open(export, adapters):
    """ONNX Runtime copies what it is handed: writing over it later changes nothing."""
    manifest = read_manifest(export)
    resolved = resolve_source(export, manifest, "b", AdapterSpec(source=str(adapters["b"])))
    values = merged_values(export, manifest, resolved)
    stored = {u.initializer: u for uses in manifest.parameters.values() for u in uses}
    for name, use in stored.items():  # biases, norms and embeddings too, which are not repacked
        values.setdefault(name, np.full(use.shape, 0.01, np.float32))
    runner = OrtRunner(export / "base.onnx", initializers=values)
    before = runner.run(FEEDS)["logits"]
    for each in values.values():
        each[...] = np.nan
    assert np.array_equal(runner.run(FEEDS)["logits"], before)
    del values
    gc.collect()
    assert np.array_equal(runner.run(FEEDS)["logits"], before)


def test_bfloat16_initializers_are_handed_over(tmp_path):
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 2]) for n in "xy")
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], b"\0\0\0\0", raw=True)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, size_threshold=0)
    handed = {"w": np.array([1.5, -2], ml_dtypes.bfloat16)}
    runner = OrtRunner(tmp_path / "g.onnx", initializers=handed)
    assert runner.run({"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1.5, -2]]


def test_a_head_of_another_width_is_refused_with_what_can_hold_it(tiny, base, export):
    wide = tiny.adapter(base, seed=13, labels_count=5)
    with pytest.raises(UnsupportedError, match=r"'classifier\.\w+' of shape \[5") as caught:
        open_export(export, adapters={"wide": wide})
    assert "lora-export add" in (caught.value.hint or "")
    assert "--mode swappable" in (caught.value.hint or "")


def test_settings_of_a_given_adapter_are_applied(base, export, adapters, tmp_path):
    source = AdapterSpec(source=str(adapters["b"]), scale=0.5, drop=["classifier.*"])
    with open_export(export, adapters={"b": source}) as session:
        (found,) = session.run(FEEDS, adapter="b").values()
    export_dir = shutil.copytree(export, tmp_path / "out")
    add(
        export_dir,
        [AdapterSpec(name="b", source=str(adapters["b"]), scale=0.5, drop=["classifier.*"])],
    )
    assert np.array_equal(found, run_graph(export_dir, "b", FEEDS))
