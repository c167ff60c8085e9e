"""Graphs made by hand, one for each thing that TensorRT refuses or treats in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.targets import TARGETS
from lora_export.engines.preflight import check_graph
from lora_export.ondevice.trt.build_settings import ShapeRange
from tests.helpers.node_graphs import axes_of, graph, node

if TYPE_CHECKING:
    from lora_export.engines.findings import Finding
    from lora_export.engines.preflight import GraphReport

FLOAT, HALF, BFLOAT, LONG = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT64,
)
ORIN = TARGETS["jetson-orin"]
EIGHT = {"x": ShapeRange((1, 8), (2, 8), (4, 8))}


def report(
    data: bytes, target: str = "jetson-orin", version: str = "10.3", **more: Any
) -> GraphReport:
    return check_graph(data, TARGETS[target], version, **{"profiles": [EIGHT], **more})


def found(result: GraphReport, code: str) -> list[Finding]:
    return [each for each in result.findings if each.code == code]


def only(result: GraphReport, code: str) -> Finding:
    (one,) = found(result, code)
    return one


def grave(result: GraphReport) -> list[str]:
    return [each.code for each in result.findings if each.severity != "note"]


def test_a_plain_graph_has_notes_only():
    result = report(graph([node("Relu", ["x"])]))
    assert grave(result) == []
    assert result.operators == {"Relu": 1}
    assert only(result, "dynamic-shape").message == "built for batch 1:2:4"


def test_an_operator_that_is_refused_names_its_nodes_and_the_version_that_reads_it():
    data = graph([node("Det", ["x"], name="late"), node("Identity", ["x"])], shape=(4, 4))
    refused = only(report(data, profiles=[]), "operator-refused")
    assert (refused.severity, refused.subject, refused.where) == ("error", "Det", ("late",))
    assert "TensorRT 10.3 does not read it" in refused.message

    qkv = [helper.make_tensor_value_info(name, FLOAT, [1, 2, 4, 8]) for name in ("k", "v")]
    data = graph([node("Attention", ["x", "k", "v"])], shape=(1, 2, 4, 8), inputs=qkv, opset=24)
    refused = only(report(data, profiles=[]), "operator-refused")
    assert "10.14 is the first that does" in refused.message
    assert "TensorRT 10.14 or newer" in refused.hint
    assert grave(report(data, version="10.16", profiles=[])) == []


def test_an_operator_that_no_table_has_is_unknown():
    unknown = only(report(graph([node("NewOperator", ["x"])])), "operator-unknown")
    assert (unknown.severity, unknown.subject) == ("warning", "NewOperator")


def test_an_operator_of_onnxruntime_is_an_error_and_one_of_a_plugin_too():
    data = graph(
        [node("FusedMatMul", ["x", "x"], domain="com.microsoft", name="fused")],
        domains=["com.microsoft"],
    )
    contrib = only(report(data), "contrib-operator")
    assert (contrib.severity, contrib.subject) == ("error", "com.microsoft::FusedMatMul")
    assert contrib.where == ("fused",)
    assert "before ONNX Runtime optimized it" in contrib.hint
    data = graph([node("Scale", ["x"], domain="my.plugins")], domains=["my.plugins"])
    assert "plugin of this name" in only(report(data), "custom-operator").message


def test_a_function_of_the_model_is_walked():
    function = helper.make_function(
        "local", "F", ["a"], ["b"],
        [helper.make_node("Unique", ["a"], ["b"], name="inside")],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    data = graph([node("F", ["x"], domain="local")], functions=[function], domains=["local"])
    result = report(data)
    assert only(result, "operator-refused").where == ("inside",)
    assert not found(result, "custom-operator")


def test_the_body_of_a_loop_is_walked():
    body = helper.make_graph(
        [node("Unique", ["c"], outputs=["d"], name="inside"),
         node("Identity", ["keep"], outputs=["go"])],
        "body",
        [helper.make_tensor_value_info("i", LONG, []),
         helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
         helper.make_tensor_value_info("c", FLOAT, None)],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("d", FLOAT, None)],
    )  # fmt: skip
    data = graph([node("Loop", ["", "", "x"], body=body)])
    assert only(report(data), "operator-refused").where == ("inside",)


@pytest.mark.parametrize(("version", "expected"), [("10.3", ["operator-restricted"]), ("10.7", [])])
def test_axes_that_the_graph_computes(version, expected):
    nodes = [
        node("Shape", ["x"], outputs=["axes"], start=0, end=1),
        node("Unsqueeze", ["x", "axes"], name="wide"),
    ]
    result = report(graph(nodes), version=version)
    assert grave(result) == expected
    if expected:
        assert only(result, "operator-restricted").where == ("wide",)
        assert "10.7 or newer" in only(result, "operator-restricted").hint


def test_axes_that_are_constants_are_taken():
    data = graph([node("Unsqueeze", ["x", "axes"])], weights=[axes_of("axes", [0])])
    assert grave(report(data)) == []
    constant = node("Constant", [], outputs=["axes"], value=axes_of("v", [0]))
    assert grave(report(graph([constant, node("Unsqueeze", ["x", "axes"])]))) == []


def test_axes_that_can_be_fed_are_not_constants():
    axes = helper.make_tensor_value_info("axes", LONG, [1])
    data = graph([node("Unsqueeze", ["x", "axes"])], weights=[axes_of("axes", [0])], inputs=[axes])
    assert grave(report(data)) == ["operator-restricted"]


@pytest.mark.parametrize(
    ("nodes", "shape", "text"),
    [
        ([node("Einsum", ["x"], equation="...i->...")], (4, 8), "an ellipsis"),
        ([node("LayerNormalization", ["x", "w"], outputs=["y", "m"])], (4, 8), "after the first"),
        ([node("Attention", ["x"] * 3, q_num_heads=2, kv_num_heads=2)], (1, 4, 8), "four axes"),
        ([node("Attention", ["x", "x", "x"], softcap=2.0)], (1, 2, 4, 8), "a softcap"),
        ([node("Attention", ["x", "x", "x"], softmax_precision=1)], (1, 2, 4, 8), "the softmax"),
        ([node("Attention", ["x", "x", "x", "", "x", "x"], outputs=["y", "k", "v"])],
         (1, 2, 4, 8), "past keys and values"),
    ],
)  # fmt: skip
def test_what_an_operator_is_not_read_with(nodes, shape, text):
    version = "10.3" if nodes[0].op_type != "Attention" else "10.16"
    weights = [numpy_helper.from_array(np.ones(8, np.float32), "w")]
    result = report(
        graph(nodes, shape=shape, opset=24, weights=weights), version=version, profiles=[]
    )
    assert any(text in each.message for each in found(result, "operator-restricted")), text


def test_a_type_that_the_table_does_not_list_is_a_warning():
    axis = numpy_helper.from_array(np.array(1, np.int64), "axis")
    data = graph([node("CumSum", ["x", "axis"])], kind=LONG, weights=[axis])
    listed = only(report(data), "type")
    assert (listed.severity, listed.subject) == ("warning", "CumSum of INT64")


def test_the_types_of_conditions_shapes_and_indices_do_not_count():
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [8])
    assert grave(report(graph([node("Where", ["c", "x", "x"])], inputs=[condition]))) == []
    data = graph([node("Where", ["c", "x", "x"])], kind=TensorProto.UINT8, inputs=[condition])
    assert only(report(data), "type").subject == "Where of UINT8"


def test_a_cast_is_judged_by_both_types():
    data = graph([node("Cast", ["x"], to=TensorProto.INT16)], out=TensorProto.INT16)
    subjects = {(each.subject, each.severity) for each in found(report(data), "type")}
    assert subjects == {("Cast of INT16", "error"), ("y", "error")}


def test_doubles_are_computed_as_floats_and_strings_are_not_taken():
    double = only(report(graph([node("Relu", ["x"])], kind=TensorProto.DOUBLE)), "double")
    assert (double.severity, set(double.where)) == ("warning", {"x", "y"})
    result = report(graph([node("Identity", ["x"])], kind=TensorProto.STRING))
    assert {each.severity for each in found(result, "type")} == {"error"}
    assert "STRING" in found(result, "type")[0].message


def test_integers_of_64_bits_stay():
    note = only(report(graph([node("Relu", ["x"])], kind=LONG)), "int64")
    assert note.severity == "note"
    assert "1 input and 1 output of int64" in note.message


def test_an_input_without_a_profile_is_an_error():
    data = graph([node("Relu", ["x"])])
    missing = only(report(data, profiles=[]), "dynamic-shape")
    assert (missing.severity, missing.where) == ("error", ("x",))
    assert "--profile batch=MIN:OPT:MAX" in missing.hint
    assert report(data, profiles=[]).memory.activations_bytes is None
    assert grave(report(graph([node("Relu", ["x"])], shape=(2, 8)), profiles=[])) == []


def test_an_optional_input_is_noted_with_what_becomes_of_it():
    a = helper.make_tensor_value_info("a", FLOAT, ["m.lora_r", 8])
    empty = helper.make_tensor("a", FLOAT, [0, 8], b"", raw=True)
    data = graph(
        [node("MatMul", ["x", "at"]), node("Transpose", ["a"], outputs=["at"])][::-1],
        weights=[empty], inputs=[a],
    )  # fmt: skip
    profile = {**EIGHT, "a": ShapeRange((1, 8), (4, 8), (16, 8))}
    result = report(data, profiles=[profile])
    note = only(result, "optional-input")
    assert (note.severity, note.where) == ("note", ("a",))
    assert "drops them" in note.message
    assert only(result, "dynamic-shape").message == "built for batch 1:2:4, lora_r 1:4:16"
    assert only(report(data), "dynamic-shape").where == ("a",)


@pytest.mark.parametrize(
    ("opset", "version", "severity"),
    [(20, "10.3", None), (24, "10.3", "warning"), (24, "10.16", None), (7, "10.3", "error")],
)
def test_the_opset(opset, version, severity):
    result = report(graph([node("Relu", ["x"])], opset=opset), version=version)
    assert [each.severity for each in found(result, "opset")] == ([severity] if severity else [])


def test_a_newer_opset_names_the_operators_that_it_changed():
    data = graph([node("Cast", ["x"], to=FLOAT, outputs=["z"]), node("Relu", ["z"])], opset=24)
    assert only(report(data), "opset").where == ("Cast",)


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        (HALF, "jetson-orin", []),
        (BFLOAT, "h100", []),
        (BFLOAT, "auto", ["warning"]),
        (HALF, "auto", []),
        (TensorProto.FLOAT8E4M3FN, "jetson-orin", ["error"]),
        (TensorProto.FLOAT8E4M3FN, "l4", []),
        (TensorProto.FLOAT4E2M1, "l4", ["error"]),
        (TensorProto.FLOAT4E2M1, "rtx-blackwell", []),
    ],
)
def test_a_precision_that_the_target_lacks(kind, target, expected):
    data = graph([node("Identity", ["x"])], kind=kind, opset=23)
    result = report(data, target=target, version="10.16")
    assert [each.severity for each in found(result, "precision")] == expected
    if expected == ["error"]:
        assert target in only(result, "precision").message


def test_the_gravest_stands_first():
    nodes = [node("Unique", ["x"], outputs=["z"]), node("NewOperator", ["z"])]
    severities = [each.severity for each in report(graph(nodes)).findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert severities[0] == "error"


def test_a_damaged_graph_is_refused():
    from lora_export.core.errors import ExportDirectoryError

    with pytest.raises(ExportDirectoryError, match="not a readable ONNX model"):
        check_graph(b"\x00garbage", ORIN, "10.3")
    with pytest.raises(ExportDirectoryError):
        check_graph(onnx.ModelProto().SerializeToString()[:0] + b"\xff" * 9, ORIN, "10.3")


def test_what_no_exporter_writes_is_no_crash():
    strange = [
        node("Constant", [], outputs=[]),
        node("Einsum", ["x"], equation=3, outputs=["z"]),
        node("Identity", ["z"]),
    ]
    assert report(graph(strange, kind=99)).findings
    branches = {
        f"{which}_branch": helper.make_graph(
            [node("Relu", ["x"], outputs=["b"])],
            which,
            [],
            [helper.make_tensor_value_info("b", FLOAT, [3, 7])],  # it is [4, 8]
        )
        for which in ("then", "else")
    }
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    data = graph([node("If", ["c"], **branches)], shape=(4, 8), inputs=[condition])
    assert report(data, profiles=[]).operators == {"If": 1, "Relu": 2}
