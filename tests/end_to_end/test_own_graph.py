"""Graphs of other exporters through the whole pipeline, merged weights against PEFT."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.exports import assert_intact, manifest_of, report
from tests.cli.running import call, snapshot
from tests.helpers.builds import merged_by_peft, read_graph
from tests.helpers.foreign import export_tiny

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

TASK = "text-classification"
ADAPTER = {"target_modules": ["query", "dense", "word_embeddings"], "bias": "all"}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory, tiny) -> dict[str, Path]:
    """One tiny BERT, exported by both of torch's exporters."""
    folder = tmp_path_factory.mktemp("graphs")
    base = tiny.base("bert", TASK)
    return {
        name: export_tiny(base, folder / f"{name}.onnx", TASK, dynamo=name == "dynamo")
        for name in ("dynamo", "torchscript")
    }


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_graph_of_another_exporter_end_to_end(tiny, graphs, tmp_path, capsys, exporter) -> None:
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, **ADAPTER)
    out = tmp_path / "out"
    before = graphs[exporter].read_bytes()
    result = call(capsys, "merge-and-build", "--base", base, "--graph", graphs[exporter],
                  "--adapter", f"mine={adapter}", "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    assert graphs[exporter].read_bytes() == before
    assert_intact(out)
    rows = report(out, "parity")["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == {"base": "pass", "mine": "pass"}
    assert rows["mine"]["metrics"]["relative_l2"] < 1e-5
    expected = merged_by_peft(base, adapter, TASK)
    merged = read_graph(out, "mine")
    assert set(merged) == {name for name in expected if "position_ids" not in name}
    for name, value in merged.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, err_msg=name)

    found = report(out, "graph")
    assert (found["by_name"], found["by_content"], found["transposed"]) == (29, 12, 12)
    assert (found["unmatched"], found["ambiguous"], found["not_in_graph"]) == ([], [], [])
    assert len(found["renamed"]) == 12
    theirs, ours = onnx.load(graphs[exporter]), onnx.load(out / "base.onnx")
    assert (ours.ir_version, ours.opset_import) == (theirs.ir_version, theirs.opset_import)
    assert manifest_of(out)["graphs"]["base"]["opset"] == 20


def test_add_to_such_an_export_is_the_same_as_a_build(tiny, graphs, tmp_path, capsys) -> None:
    base = tiny.base("bert", TASK)
    one, two = tiny.adapter(base, **ADAPTER), tiny.adapter(base, seed=5)
    flags = ("--base", base, "--graph", graphs["torchscript"])
    both = call(capsys, "export", *flags, "--adapter", f"one={one}", "--adapter", f"two={two}",
                "--out", tmp_path / "both")  # fmt: skip
    assert both.code == 0, both.err
    assert call(capsys, "export", *flags, "--out", tmp_path / "out").code == 0
    for name, adapter in (("one", one), ("two", two)):
        added = call(capsys, "add", tmp_path / "out", "--adapter", f"{name}={adapter}")
        assert added.code == 0, added.err
    expected, found = snapshot(tmp_path / "both"), snapshot(tmp_path / "out")
    assert {k: v for k, v in found.items() if k != "lora_export.json"} == {
        k: v for k, v in expected.items() if k != "lora_export.json"
    }
    again = call(capsys, "export", *flags, "--adapter", f"three={two}", "--out", tmp_path / "out")
    assert again.code == 0, again.err
    assert set(manifest_of(tmp_path / "out")["adapters"]) == {"one", "two", "three"}
    other = call(capsys, "export", "--base", base, "--graph", graphs["dynamo"], "--out",
                 tmp_path / "out")  # fmt: skip
    assert other.code == 3
    assert "another graph" in other.message


@pytest.mark.parametrize("mode", ["swappable", "batched"])
def test_adapters_that_share_a_graph_without_names(tiny, graphs, tmp_path, capsys, mode) -> None:
    base, out = tiny.base("bert", TASK), tmp_path / "out"
    one, two = (tiny.adapter(base, seed=seed, r=seed) for seed in (2, 5))
    built = call(capsys, "export", "--base", base, "--graph", graphs["dynamo"], "--mode", mode,
                 "--adapter", f"one={one}", "--out", out)  # fmt: skip
    assert built.code == 0, built.err
    added = call(capsys, "add", out, "--adapter", f"two={two}")
    assert added.code == 0, added.err
    verified = call(capsys, "verify", out, "--base", base, "--adapter", f"one={one}",
                    "--adapter", f"two={two}", "--json")  # fmt: skip
    assert verified.code == 0, verified.err
    rows = report(out, "parity")["graphs"]
    assert rows["base"]["verdict"] == rows[mode]["verdict"] == "pass"
    assert set(rows[mode]["adapters"]) == {"one", "two"}
    for row in rows[mode]["adapters"].values():
        assert row["verdict"] == "pass"
        assert row["metrics"]["relative_l2"] < 1e-5


def test_graph_of_another_base_is_refused(tiny, graphs, tmp_path, capsys) -> None:
    other = tiny.base("bert", TASK, seed=9)
    out = tmp_path / "out"
    for exporter in graphs:
        result = call(capsys, "export", "--base", other, "--graph", graphs[exporter], "--out", out)
        assert result.code == 3
        assert "29 initializer(s)" in result.message
        assert "hold other values; 0 match" in result.message
        assert not out.exists()


def test_weight_that_is_not_in_the_graph(tiny, graphs, tmp_path, capsys) -> None:
    """One weight of the graph is not the base's any more, as after quantization."""
    base = tiny.base("bert", TASK)
    model = onnx.load(graphs["torchscript"])
    path = "/bert/encoder/layer.1/attention/self/query/MatMul"
    (node,) = [node for node in model.graph.node if node.name == path]
    (weight,) = [each for each in model.graph.initializer if each.name == node.input[1]]
    weight.raw_data = np.round(numpy_helper.to_array(weight), 1).tobytes()
    onnx.save(model, tmp_path / "m.onnx")
    flags = ("--base", base, "--graph", tmp_path / "m.onnx")
    refused = call(capsys, "export", *flags, "--adapter", f"a={tiny.adapter(base, **ADAPTER)}",
                   "--out", tmp_path / "none")  # fmt: skip
    assert refused.code == 3
    assert "bert.encoder.layer.1.attention.self.query.weight" in refused.message
    assert weight.name in refused.message
    assert not (tmp_path / "none").exists()

    first = tiny.adapter(base, target_modules=r".*layer\.0.*query")
    built = call(capsys, "export", *flags, "--adapter", f"a={first}", "--out", tmp_path / "out")
    assert built.code == 0, built.err
    assert f"1 unmatched: {weight.name} [32, 32]" in built.out
    kept = {e.name: numpy_helper.to_array(e) for e in onnx.load(tmp_path / "out" / "a.onnx")
            .graph.initializer}  # fmt: skip
    np.testing.assert_array_equal(kept[weight.name], numpy_helper.to_array(weight))
    unmatched = report(tmp_path / "out", "graph")["unmatched"]
    assert unmatched == [{"initializer": weight.name, "dtype": "float32", "shape": [32, 32]}]


def test_new_model_whose_equal_tensors_torchscript_stores_once(tiny, tmp_path, capsys) -> None:
    """LayerNorms are ones, biases zeros: one initializer, an Identity for each other name."""
    import transformers

    base = tiny.base("bert", TASK)
    fresh = tmp_path / "fresh"
    shutil.copytree(base, fresh)
    config = transformers.AutoConfig.from_pretrained(base)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(fresh)
    adapter = tiny.adapter(fresh, **ADAPTER)
    graph = export_tiny(fresh, tmp_path / "m.onnx", TASK, dynamo=False)
    assert "Identity" in {node.op_type for node in onnx.load(graph).graph.node}
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", fresh, "--graph", graph, "--adapter",
                  f"mine={adapter}", "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    assert report(out, "graph")["ambiguous"] == []
    assert report(out, "parity")["graphs"]["mine"]["verdict"] == "pass"


def test_fixed_axes(tiny, tmp_path, capsys) -> None:
    base = tiny.base("bert", TASK)
    graph = export_tiny(base, tmp_path / "m.onnx", TASK, dynamo=False, fixed=True)
    out = tmp_path / "out"
    result = call(capsys, "merge-and-build", "--base", base, "--graph", graph, "--adapter",
                  f"mine={tiny.adapter(base)}", "--no-latency", "--out", out)  # fmt: skip
    assert result.code == 0, result.err + result.out
    row = report(out, "parity")["graphs"]["mine"]
    assert (row["verdict"], row["inputs"]) == ("pass", [[2, 8]])


def test_settings_that_the_graph_decides_are_refused(tiny, graphs, tmp_path, capsys) -> None:
    base = tiny.base("bert", TASK)
    for flags in (("--dtype", "float16"), ("--opset", "18"), ("--logits", "last")):
        result = call(capsys, "export", "--base", base, "--graph", graphs["dynamo"], *flags,
                      "--out", tmp_path / "out")  # fmt: skip
        assert result.code == 2
        assert f"{flags[0]} cannot be combined with --graph" in result.message


def test_recipe_names_a_graph_beside_it(tiny, graphs, tmp_path, capsys) -> None:
    shutil.copy(graphs["torchscript"], tmp_path / "m.onnx")
    recipe = tmp_path / "recipe.yaml"
    table = {"base": str(tiny.base("bert", TASK)), "graph": "m.onnx", "output": "out",
             "verify": {"enabled": False}, "latency": {"enabled": False}}  # fmt: skip
    recipe.write_text(json.dumps(table))
    result = call(capsys, "merge-and-build", recipe)
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "out")["base"]["graph"]["source"] == "../m.onnx"
