"""Graphs parsed by the double of TensorRT: its errors, and a builder that does not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.ondevice.device_errors import DeviceError
from lora_export.ondevice.trt.api import Log
from lora_export.ondevice.trt.parsing import judge_graph, parse_graph, start_builder
from tests.helpers.double import install_double
from tests.helpers.node_graphs import graph, node

PATH = Path("graph.onnx")


def test_errors_name_the_library_and_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    install_double(monkeypatch)
    nodes = [node("Relu", ["x"], outputs=["a"]), node("Unknown", ["a"], name="it")]
    judgement = judge_graph("tensorrt", graph(nodes), PATH)
    assert (judgement.library, judgement.version) == ("tensorrt-double", "10.3.0")
    (refusal,) = judgement.refusals
    assert (refusal.at, refusal.node, refusal.operator) == (1, "it", "Unknown")
    assert refusal.text == "No importer registered for op: Unknown"
    assert judge_graph("tensorrt", graph(nodes[:1]), PATH).refusals == ()


def test_a_parser_without_an_error_of_its_own_is_quoted_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = install_double(monkeypatch)
    log = Log(module)
    monkeypatch.setattr(module.OnnxParser, "num_errors", property(lambda _: 0))
    parsed = parse_graph(start_builder(log), log, b"no graph", PATH)
    assert [each.at for each in parsed.refusals] == [-1]
    assert "ModelImporter" in parsed.refusals[0].text


def test_a_builder_that_does_not_start_is_a_missing_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = install_double(monkeypatch)
    module.cudart.devices = 0
    with pytest.raises(DeviceError, match="does not start") as error:
        judge_graph("tensorrt", graph([node("Relu", ["x"])]), PATH)
    assert error.value.exit_code == 7
