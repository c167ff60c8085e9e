"""The tables compared with the parser of TensorRT for RTX: operators, restrictions, types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.targets import TARGETS
from lora_export.engines.parser_check import findings_of
from lora_export.engines.parser_table import parser_of
from lora_export.engines.preflight import check_graph
from lora_export.engines.restrictions import RESTRICTIONS
from lora_export.ondevice.trt.api import Log, import_library
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.ondevice.trt.parsing import judge_graph, parse_graph, start_builder
from tests.helpers.node_graphs import axes_of, graph, node

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOAT, LONG = TensorProto.FLOAT, TensorProto.INT64
VERSION = "1.7"
TABLE = (4, 8)
HEADS = (1, 2, 4, 8)
NEEDS_A_PLUGIN = {"NonZero", "RoiAlign"}
"""Operators with an importer that asks for a plugin, of which the library has none."""


def value(name: str, shape: Sequence[int], kind: int = LONG) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def ones(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def test_every_operator_of_onnx_is_read_or_refused_as_the_table_says() -> None:
    log = Log(import_library(TENSORRT_RTX))
    data = graph([node("Relu", ["x"])])
    parsed = parse_graph(start_builder(log), log, data, Path("graph.onnx"))
    operators = {each.name for each in onnx.defs.get_all_schemas() if each.domain == ""}
    read = {each for each in operators if parsed.parser.supports_operator(each)}
    assert read - NEEDS_A_PLUGIN == operators.intersection(parser_of(VERSION, TENSORRT_RTX).types)


PAST = [node("Attention", ["x", "x", "x", "", "x", "x"], outputs=["y", "k", "v"])]
COMPUTED = {"inputs": [value("axes", [1])]}
CACHE = {"shape": HEADS, "inputs": [value("cache", [1, 2, 16, 8], FLOAT), value("at", [1])]}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "slice": ([node("Slice", ["x", "zero", "one", "axes"])],
              {"weights": [axes_of("zero", [0]), axes_of("one", [1])], **COMPUTED}),
    "pad": ([node("Pad", ["x", "pads", "", "axes"])],
            {"weights": [axes_of("pads", [0, 1])], **COMPUTED}),
    "squeeze": ([node("Squeeze", ["x", "axes"])], {"shape": (1, 8), **COMPUTED}),
    "unsqueeze": ([node("Unsqueeze", ["x", "axes"])], COMPUTED),
    "unsqueeze, constant": ([node("Unsqueeze", ["x", "a"])], {"weights": [axes_of("a", [0])]}),
    "cumsum": ([node("CumSum", ["x", "axis"])], {"inputs": [value("axis", [])]}),
    "reduce": ([node("ReduceSum", ["x", "axes"])], COMPUTED),
    "one hot": ([node("OneHot", ["i", "depth", "values"])],
                {"weights": [ones("values", 2)], "inputs": [value("i", [2]), value("depth", [])]}),
    "einsum": ([node("Einsum", ["x"], equation="...i->...")], {}),
    "scatter elements": ([node("ScatterElements", ["x", "i", "u"])],
                         {"inputs": [value("i", [2, 8]), value("u", [2, 8], FLOAT)]}),
    "scatter elements, added": ([node("ScatterElements", ["x", "i", "u"], reduction="add")],
                                {"inputs": [value("i", [2, 8]), value("u", [2, 8], FLOAT)]}),
    "scatter": ([node("ScatterND", ["x", "i", "u"])],
                {"inputs": [value("i", [2, 1]), value("u", [2, 8], FLOAT)]}),
    "scatter, added": ([node("ScatterND", ["x", "i", "u"], reduction="add")],
                       {"inputs": [value("i", [2, 1]), value("u", [2, 8], FLOAT)]}),
    "group norm": ([node("GroupNormalization", ["x", "w", "w"], num_groups=2)],
                   {"shape": (1, 8, 4, 4), "weights": [ones("w", 8)]}),
    "layer norm": ([node("LayerNormalization", ["x", "w"])], {"weights": [ones("w", 8)]}),
    "layer norm, mean": ([node("LayerNormalization", ["x", "w"], outputs=["y", "m"])],
                         {"weights": [ones("w", 8)]}),
    "max pool": ([node("MaxPool", ["x"], kernel_shape=[2, 2], outputs=["y", "i"])],
                 {"shape": HEADS}),
    "top k": ([node("TopK", ["x", "k"], sorted=0, outputs=["y", "i"])],
              {"weights": [axes_of("k", [2])]}),
    "non zero": ([node("NonZero", ["x"])], {"out": LONG}),
    "det": ([node("Det", ["x"])], {"shape": (4, 4)}),
    "attention": ([node("Attention", ["x"] * 3)], {"shape": HEADS}),
    "attention, three axes": ([node("Attention", ["x"] * 3, q_num_heads=2, kv_num_heads=2)],
                              {"shape": (1, 4, 8)}),
    "attention, past": (PAST, {"shape": HEADS}),
    "attention, lengths": ([node("Attention", ["x", "x", "x", "", "", "", "n"])],
                           {"shape": HEADS, "inputs": [value("n", [1])]}),
    "attention, capped": ([node("Attention", ["x"] * 3, softcap=2.0)], {"shape": HEADS}),
    "attention, precision": ([node("Attention", ["x"] * 3, softmax_precision=1)],
                             {"shape": HEADS}),
    "rms norm": ([node("RMSNormalization", ["x", "w"])], {"weights": [ones("w", 8)]}),
    "rotary": ([node("RotaryEmbedding", ["x", "c", "s"])],
               {"shape": HEADS, "weights": [ones("c", 1, 4, 4), ones("s", 1, 4, 4)]}),
    "tensor scatter": ([node("TensorScatter", ["cache", "x", "at"])], CACHE),
    "tensor scatter, axis from the front": (
        [node("TensorScatter", ["cache", "x", "at"], axis=2)],
        CACHE,
    ),
    "tensor scatter, circular": ([node("TensorScatter", ["cache", "x", "at"], mode="circular")],
                                 CACHE),
    "tensor scatter, axis": ([node("TensorScatter", ["cache", "x", "at"], axis=-1)],
                             {**CACHE, "shape": (1, 2, 16, 4)}),
    "tensor scatter, three axes": (
        [node("TensorScatter", ["cache", "new", "at"])],
        {"inputs": [value("cache", [2, 16, 8], FLOAT), value("new", [2, 4, 8], FLOAT),
                    value("at", [2])]},
    ),
    "of onnxruntime": ([node("FusedMatMul", ["x", "x"], domain="com.microsoft")],
                       {"shape": (4, 4), "domains": ["com.microsoft"]}),
    "of a plugin": ([node("Scale", ["x"], domain="own")], {"domains": ["own"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_tables_refuse_what_the_parser_refuses(case: str) -> None:
    nodes, settings = CASES[case]
    data = graph(nodes, opset=24, **{"shape": TABLE, **settings})
    report = check_graph(data, TARGETS["rtx"], VERSION, library=TENSORRT_RTX)
    ours = {each.where for each in report.findings if each.severity == "error"}
    theirs = list(findings_of(judge_graph(TENSORRT_RTX, data, Path("graph.onnx")), data))
    refused = [each for each in theirs if each.code == "parser-refused"]
    assert bool(ours) == bool(refused), (report.findings, theirs)
    assert {each.where for each in refused} <= {*ours, ()}


def test_every_restriction_of_the_library_is_among_the_cases() -> None:
    asked = {each.op_type for nodes, _ in CASES.values() for each in nodes}
    reductions = {each.operator for each in RESTRICTIONS if each.operator.startswith("Reduce")}
    rows = {each.operator for each in RESTRICTIONS if TENSORRT_RTX in each.libraries}
    assert rows - reductions <= asked
    assert "ReduceSum" in reductions & asked


def test_all_errors_of_a_graph_are_said_at_once() -> None:
    nodes = [
        node("Det", ["x"], outputs=["a"], name="first"),
        node("Relu", ["x"], outputs=["b"], name="read"),
        node("Unique", ["b"], outputs=["y"], name=""),
        node("Det", ["x"], outputs=["z"], name="last"),
    ]
    data = graph(nodes, shape=(4, 4))
    judgement = judge_graph(TENSORRT_RTX, data, Path("graph.onnx"))
    assert judgement.library == TENSORRT_RTX
    assert [(each.at, each.node, each.operator) for each in judgement.refusals] == [
        (0, "first", "Det"), (2, "", "Unique"), (3, "last", "Det"),
    ]  # fmt: skip
    det, unique = findings_of(judgement, data)
    assert (det.subject, det.where) == ("Det", ("first", "last"))
    assert (unique.subject, unique.where) == ("Unique", ("y",))


def test_where_the_parser_stops_is_its_last_error() -> None:
    nodes = [node("Relu", ["x"], outputs=["a"]), node("Relu", ["absent"], name="here")]
    (refusal,) = judge_graph(TENSORRT_RTX, graph(nodes), Path("graph.onnx")).refusals
    assert (refusal.at, refusal.node) == (1, "here")
    assert "Node input was not registered" in refusal.text
    (refusal,) = judge_graph(TENSORRT_RTX, b"no graph", Path("graph.onnx")).refusals
    assert (refusal.at, refusal.operator) == (-1, "")
