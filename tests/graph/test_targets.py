"""The default graph of every architecture has only what TensorRT 10's parser knows.

The table is that of parser 10.1, the last one published as such; 10.3 knows no less.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx
import onnx.shape_inference
import pytest

from lora_export.base.targets import DEFAULT_TARGET, TARGETS
from tests.graph.families import OPSET

if TYPE_CHECKING:
    from tests.graph.families import Family

TABLE: Final = Path(__file__).parents[1] / "data" / "tensorrt_operators_10.1.json"
TYPES: Final = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.BOOL: "BOOL",
}
EXCEPTIONS: Final = {
    ("roberta", "CumSum", "INT64"),  # positions, counted from the padding
    ("deberta-v2", "Clip", "INT64"),  # relative positions, clipped to their buckets
}
"""(kind, operator, type) that the parser's table does not list, and that a graph still has."""


@pytest.fixture(scope="module")
def parser() -> dict[str, Any]:
    """Return the parser's table."""
    table: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))
    return table


def data_types(family: Family) -> dict[str, str]:
    """Return the type of every value that shape inference can tell."""
    graph = onnx.shape_inference.infer_shapes(family.graph).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: TYPES[value.type.tensor_type.elem_type] for value in values}
    return types | {tensor.name: TYPES[tensor.data_type] for tensor in graph.initializer}


def test_tests_export_at_the_opset_of_the_default_target() -> None:
    assert TARGETS[DEFAULT_TARGET].opset == OPSET


def test_default_opset_is_one_that_tensorrt_parses(parser) -> None:
    assert parser["opset_min"] <= OPSET <= parser["opset_max"]


def test_default_graph_has_only_operators_and_types_that_tensorrt_parses(family, parser) -> None:
    types = data_types(family)
    unknown = set()
    for node in family.graph.graph.node:
        assert not node.domain
        known = parser["operators"].get(node.op_type, [])
        for name in node.input[:1]:  # the operand: what follows may be axes, shapes, indices
            if types[name] not in known:
                unknown.add((family.kind, node.op_type, types[name]))
    assert unknown == {row for row in EXCEPTIONS if row[0] == family.kind}
