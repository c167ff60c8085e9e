"""Findings of the installed library's own parser, beside those that the tables give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.engines.findings import Finding
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.trt.libraries import library_title
from lora_export.ondevice.trt.parsing import judge_graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from lora_export.ondevice.trt.parsing import Judgement, Refusal

__all__ = ["check_with_parser", "findings_of"]

_OF_OPERATORS: Final = frozenset(
    {"contrib-operator", "custom-operator", "operator-refused", "operator-restricted", "opset"}
)
"""Errors of the tables that the parser decides as well."""


def check_with_parser(
    library: str, onnx_bytes: bytes, path: Path, others: Iterable[Finding] = ()
) -> list[Finding]:
    """Parse a graph with an installed library, and return its errors as findings.

    Args:
        library: The library; see `lora_export.ondevice.trt.libraries`.
        onnx_bytes: The graph that an engine is built from, without optional inputs.
        path: Where the graph lies: its weight files are found beside it.
        others: The findings of the tables about the same graph.

    Raises:
        DeviceError: The library is not installed, is not supported, or does not start.
    """
    judgement = judge_graph(library, onnx_bytes, path)
    return list(findings_of(judgement, onnx_bytes, others))


def findings_of(
    judgement: Judgement, onnx_bytes: bytes, others: Iterable[Finding] = ()
) -> Iterator[Finding]:
    """Yield what a parser said of a graph: its errors, or that it reads the graph.

    Nodes with the same operator and the same error are one finding. Where the parser reads what the
    tables refuse, that is a finding too.

    Args:
        judgement: The parser's errors.
        onnx_bytes: The graph.
        others: The findings of the tables about the same graph.
    """
    name = f"{library_title(judgement.library)} {judgement.version}"
    groups: dict[tuple[str, str], list[Refusal]] = {}
    for each in judgement.refusals:
        groups.setdefault((each.operator, each.text), []).append(each)
    nodes = parse_onnx(onnx_bytes).graph.node if groups else ()
    outputs = [next(iter(node.output), "") for node in nodes]
    for (operator, text), refusals in groups.items():
        yield Finding(
            "error",
            "parser-refused",
            operator or "the graph",
            f"the parser of {name} refuses it: {text}",
            "Export with an older --opset, or without such nodes.",
            tuple(filter(None, (_name(each, outputs) for each in refusals))),
        )
    if groups:
        return
    yield Finding("note", "parser-reads", name, "its parser reads the graph")
    differing = [each for each in others if each.severity == "error" and each.code in _OF_OPERATORS]
    if differing:
        subjects = dict.fromkeys(each.subject for each in differing)
        yield Finding(
            "warning",
            "parser-differs",
            name,
            f"its parser reads what the tables refuse: {', '.join(subjects)}",
            "Build it to see whether an engine comes of it; versions may differ.",
        )


def _name(refusal: Refusal, outputs: Sequence[str]) -> str:
    """Return the name of a refused node, or what it computes; empty where no node is meant."""
    if refusal.node or not 0 <= refusal.at < len(outputs):
        return refusal.node
    return outputs[refusal.at]
