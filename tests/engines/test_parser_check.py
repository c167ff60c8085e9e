"""Errors of an installed parser as findings; the words are made up here."""

from __future__ import annotations

from lora_export.engines.findings import Finding
from lora_export.engines.parser_check import findings_of
from lora_export.ondevice.trt.parsing import Judgement, Refusal
from tests.helpers.node_graphs import graph, node

GRAPH = graph([node("Relu", ["x"], outputs=["a"], name=""), node("Relu", ["a"], name="second")])


def judged(*refusals: Refusal) -> Judgement:
    return Judgement("tensorrt-rtx", "1.7.1", refusals)


def test_nodes_with_the_same_error_are_one_finding() -> None:
    found = list(
        findings_of(
            judged(
                Refusal(0, "", "Relu", "not today"),
                Refusal(1, "second", "Relu", "not today"),
                Refusal(1, "second", "Relu", "nor tomorrow"),
            ),
            GRAPH,
        )
    )
    assert [(each.severity, each.code, each.subject) for each in found] == [
        ("error", "parser-refused", "Relu"),
        ("error", "parser-refused", "Relu"),
    ]
    assert found[0].where == ("a", "second")
    assert found[0].message == "the parser of TensorRT for RTX 1.7.1 refuses it: not today"


def test_an_error_about_no_node() -> None:
    (found,) = findings_of(judged(Refusal(-1, "", "", "the graph is damaged")), GRAPH)
    assert (found.subject, found.where) == ("the graph", ())
    (found,) = findings_of(judged(Refusal(99, "", "Relu", "no such node")), GRAPH)
    assert found.where == ()


def test_a_graph_that_is_read_is_a_note() -> None:
    (found,) = findings_of(judged(), GRAPH)
    assert (found.severity, found.code) == ("note", "parser-reads")
    assert found.subject == "TensorRT for RTX 1.7.1"


def test_a_table_that_refuses_what_is_read_is_named() -> None:
    others = [
        Finding("error", "operator-refused", "Relu", "not in the table"),
        Finding("error", "dynamic-shape", "1 input", "no profile"),
        Finding("warning", "operator-unknown", "New", "in no table"),
    ]
    _, differs = findings_of(judged(), GRAPH, others)
    assert (differs.severity, differs.code) == ("warning", "parser-differs")
    assert differs.message == "its parser reads what the tables refuse: Relu"
