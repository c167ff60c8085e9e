"""The default graph of every architecture is valid ONNX, and one that every TensorRT parses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
import pytest

from lora_export.core.targets import DEFAULT_TARGET, TARGETS
from lora_export.engines.parser_table import parser_of
from lora_export.engines.preflight import check_graph
from lora_export.engines.profiles import profiles_of
from lora_export.graph.spec.signature import read_signature
from tests.graph.families import OPSET

if TYPE_CHECKING:
    from tests.graph.families import Family

ENGINES: Final = [
    (row.name, version) for row in TARGETS.values() if row.tensorrt for version in row.tensorrt
]
CHECKED: Final = [
    *((row.name, row.tensorrt[0]) for row in TARGETS.values() if row.tensorrt),
    *(("l4", version) for version in TARGETS["l4"].tensorrt[1:]),
]
"""Each target with its oldest version, and every version once: a graph in float32 needs no more."""

EXCEPTIONS: Final = {
    ("roberta", "CumSum of INT64"),  # positions, counted from the padding
    ("deberta-v2", "Clip of INT64"),  # relative positions, clipped to their buckets
}
"""(kind, operator and type) that the parser's table does not list, and that a graph still has."""


def test_tests_export_at_the_opset_of_the_default_target() -> None:
    assert TARGETS[DEFAULT_TARGET].opset == OPSET


@pytest.mark.parametrize(("target", "version"), ENGINES)
def test_default_opset_is_one_that_each_target_parses(target, version) -> None:
    parser = parser_of(version)
    assert parser.opset_min <= TARGETS[target].opset <= parser.opset_max


def test_the_default_graph_is_valid(family: Family) -> None:
    onnx.checker.check_model(family.session._model_path, full_check=True)


def test_the_default_graph_has_only_what_every_tensorrt_parses(family: Family) -> None:
    data = family.graph.SerializeToString()
    profiles = profiles_of(read_signature(family.graph).inputs, longest=160)
    for target, version in CHECKED:
        report = check_graph(data, TARGETS[target], version, profiles=profiles)
        grave = {(each.code, each.subject) for each in report.findings if each.severity != "note"}
        expected = {("type", what) for kind, what in EXCEPTIONS if kind == family.kind}
        assert grave == expected, (target, version)
