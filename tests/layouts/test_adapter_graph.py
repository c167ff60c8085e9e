"""The graph of one adapter of a swappable export: its own head, and no optional inputs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from lora_export.core.errors import AdapterError, ExportDirectoryError
from lora_export.core.manifest import read_manifest
from lora_export.graph.adapters.baked_graph import bake_adapter
from lora_export.graph.spec.template import Placement
from lora_export.layouts.adapter_graph import graphs_of
from lora_export.layouts.description import Subject
from lora_export.runtime import open_export
from tests.cli.running import call
from tests.helpers.builds import build

TASK = "text-classification"
IDS = np.random.default_rng(5).integers(3, 200, (2, 7))
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


@pytest.fixture(scope="module")
def export(tiny, tmp_path_factory):
    base = tiny.base("roberta", TASK, tokenizer=True)
    adapters = {
        "mnli": tiny.adapter(base, seed=41, labels_count=3, use_dora=True),
        "sst2": tiny.adapter(base, seed=42, labels_count=2, r=7, use_rslora=True),
    }
    export_dir = tmp_path_factory.mktemp("heads") / "out"
    return build(base, adapters, export_dir, mode="swappable", task=TASK).output


@pytest.mark.parametrize(("name", "width"), [("mnli", 3), ("sst2", 2)])
def test_each_adapter_has_its_own_head(export, tmp_path, capsys, name, width):
    folder = tmp_path / name
    words = ("layout", export, "--for", "optimum", "--adapter", name, "-o", folder)
    assert call(capsys, *words).code == 0
    graph = onnx.load(folder / "model.onnx").graph
    assert graph.output[0].type.tensor_type.shape.dim[-1].dim_value == width
    assert {each.name for each in graph.input} == {"input_ids", "attention_mask"}
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    with open_export(export) as opened:
        wanted = opened.run(FEEDS, adapter=name)["logits"]
    np.testing.assert_allclose(session.run(None, FEEDS)[0], wanted, rtol=2e-5, atol=2e-6)
    assert len(json.loads((folder / "config.json").read_text())["id2label"]) == width


def test_a_value_that_does_not_fit_is_refused(export):
    graph, _ = graphs_of(Subject(export, read_manifest(export), "swappable"))
    name = next(
        each.name for each in onnx.load_from_string(graph).graph.input if "lora" in each.name
    )
    place = Placement("adapters/x.safetensors", 0, 8, (2, 1))
    with pytest.raises(ExportDirectoryError, match="FLOAT16"):
        bake_adapter(graph, {name: place}, {name: onnx.TensorProto.FLOAT16})
    with pytest.raises(ExportDirectoryError, match="no optional input 'y'"):
        bake_adapter(graph, {"y": place}, {"y": onnx.TensorProto.FLOAT})


def test_an_adapter_that_is_not_there_is_named(export):
    with pytest.raises(AdapterError, match="'qqp'"):
        graphs_of(Subject(export, read_manifest(export), "qqp"))
