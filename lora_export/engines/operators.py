"""The nodes of a graph checked against the parser's table: operators, types, restrictions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import onnx

from lora_export.engines.findings import Finding
from lora_export.engines.graph_view import ONNX_DOMAINS, type_name
from lora_export.engines.parser_table import ONNX_TYPES
from lora_export.engines.quantized_weights import WITHOUT_BLOCKS, has_blocks, lookup_nodes
from lora_export.engines.restrictions import broken_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lora_export.engines.graph_view import GraphView, PlacedNode
    from lora_export.engines.parser_table import Parser

__all__ = ["check_operators", "check_opset", "operator_counts"]

_CONTRIB: Final = "com.microsoft"
_MADE: Final = frozenset({"Cast", "CastLike", "ConstantOfShape"})
"""Operators whose output has a type of its own, which the table lists as well."""

_BY_FIRST_INPUT: Final = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Operators that the table lists by what they read, in whatever type they compute."""

_REPORTED_APART: Final = frozenset({"FP64"})
"""Types that are treated in one way, whatever the operator: see `interface.check_types`."""


def operator_counts(view: GraphView) -> dict[str, int]:
    """Return how often each operator stands in a graph; others than ONNX's with their domain."""
    counts = Counter(map(_label, (each.node for each in view.nodes)))
    return dict(sorted(counts.items()))


def check_opset(view: GraphView, parser: Parser) -> Iterator[Finding]:
    """Yield what the graph's opset is to a parser, which takes any and reads nodes as it can."""
    again = f"Export again with --opset {parser.opset_max}."
    if view.opset > parser.opset_max:
        blocks = has_blocks(view)
        newer = sorted(
            {each.node.op_type for each in view.nodes if _defined_since(each) > parser.opset_max}
        )
        yield Finding(
            "warning",
            "opset",
            f"opset {view.opset}",
            f"{parser.name} is documented for opsets {parser.opset_min} to "
            f"{parser.opset_max}; {len(newer)} of the graph's operators were defined anew since",
            f"{WITHOUT_BLOCKS[0].upper()}{WITHOUT_BLOCKS[1:]}." if blocks else again,
            tuple(newer),
        )
    elif view.opset < parser.opset_min:
        yield Finding(
            "error",
            "opset",
            f"opset {view.opset}",
            f"{parser.name} reads opsets {parser.opset_min} to {parser.opset_max}",
            again,
        )


def check_operators(view: GraphView, parser: Parser) -> Iterator[Finding]:
    """Yield what the parser does not read, reads in part, or is not known to read."""
    standard = [each for each in view.nodes if each.node.domain in ONNX_DOMAINS]
    integers = {id(each) for each in lookup_nodes(view)}
    yield from _foreign(view)
    for operator, nodes in _grouped(standard, lambda each: each.node.op_type):
        support = parser.support(operator)
        if support == "refused":
            yield _refused(operator, nodes, parser)
        elif support == "unknown":
            message = f"no table says whether {parser.name} reads it"
            hint = "Try it on the device, or export again with an older --opset."
            yield Finding("warning", "operator-unknown", operator, message, hint, _names(nodes))
        else:
            # the types of look-ups are another check's: see `quantized_weights`
            yield from _types(operator, [e for e in nodes if id(e) not in integers], parser)
            yield from _restricted(nodes, parser)


def _foreign(view: GraphView) -> Iterator[Finding]:
    """Yield the operators of other domains than ONNX's, which only plugins compute."""
    foreign = [
        each
        for each in view.nodes
        if each.node.domain not in ONNX_DOMAINS
        and (each.node.domain, each.node.op_type) not in view.functions
    ]
    for label, nodes in _grouped(foreign, lambda each: _label(each.node)):
        contrib = nodes[0].node.domain == _CONTRIB
        yield Finding(
            "error",
            "contrib-operator" if contrib else "custom-operator",
            label,
            "an operator of ONNX Runtime, which TensorRT does not have"
            if contrib
            else "an operator that is not ONNX's: TensorRT looks for a plugin of this name",
            "Give the graph as its exporter wrote it, before ONNX Runtime optimized it."
            if contrib
            else "Replace it by ONNX's own operators; plugins are not loaded here.",
            _names(nodes),
        )


def _refused(operator: str, nodes: list[PlacedNode], parser: Parser) -> Finding:
    since = parser.later.get(operator)
    message = f"{parser.name} does not read it"
    hint = "Export again with an older --opset, in which simpler operators take its place."
    if since is not None:
        message += f"; {since} is the first that does"
        hint = f"Build with TensorRT {since} or newer, or export with an older --opset."
    return Finding("error", "operator-refused", operator, message, hint, _names(nodes))


def _types(operator: str, nodes: list[PlacedNode], parser: Parser) -> Iterator[Finding]:
    known = parser.types[operator]
    found: dict[str, list[PlacedNode]] = {}
    for node in nodes:
        for number in sorted(_operand_types(node)):
            word = ONNX_TYPES.get(number, type_name(number))
            if known and word not in known and word not in _REPORTED_APART:
                found.setdefault(word, []).append(node)
    for word, those in found.items():
        absent = word not in ONNX_TYPES.values()
        yield Finding(
            "error" if absent else "warning",
            "type",
            f"{operator} of {word}",
            f"TensorRT has no {word}"
            if absent
            else f"TensorRT's table has it for {', '.join(known)} only; "
            "the parser may take it all the same",
            "" if absent else "Compare the engine's outputs with the golden ones.",
            _names(those),
        )


def _operand_types(node: PlacedNode) -> set[int]:
    """Return the types that the table lists a node's operator by: those of what it works on.

    That is the input whose type is the output's (the second of ``Where``), else the first; axes,
    shapes and indices do not count.
    """
    types, operator = node.scope.types, node.node.op_type
    names = [node.input(_operand_of(operator, node.opset))]
    if operator in _MADE or not names[0]:
        names.append(node.output(0))
    return {types[name] for name in names if name in types}


def _operand_of(operator: str, opset: int) -> int:
    """Return which input has the type of the output; 0 where none has."""
    if operator in _BY_FIRST_INPUT:
        return 0
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return 0
    kind = schema.outputs[0].type_str if schema.outputs else ""
    same = (at for at, each in enumerate(schema.inputs) if each.type_str == kind)
    return next(same, 0)


def _restricted(nodes: list[PlacedNode], parser: Parser) -> Iterator[Finding]:
    broken = [(each, node) for node in nodes for each in broken_by(node, parser)]
    for restriction in dict.fromkeys(each for each, _ in broken):
        since = restriction.until
        later = since[0] < 1000  # noqa: PLR2004  (never, so far)
        yield Finding(
            restriction.severity,
            "operator-restricted",
            restriction.operator,
            f"{parser.name} does not take {restriction.text}",
            f"Build with TensorRT {since[0]}.{since[1]} or newer, or export it differently."
            if later
            else "Export with an older --opset, or without such nodes.",
            _names([node for each, node in broken if each is restriction]),
        )


def _defined_since(node: PlacedNode) -> int:
    if node.node.domain not in ONNX_DOMAINS:
        return 0
    try:
        since: int = onnx.defs.get_schema(node.node.op_type, node.opset, "").since_version
    except onnx.defs.SchemaError:
        return 0
    return since


def _label(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}::{node.op_type}"


def _names(nodes: Iterable[PlacedNode]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _grouped(
    nodes: Iterable[PlacedNode], key: Callable[[PlacedNode], str]
) -> Iterator[tuple[str, list[PlacedNode]]]:
    groups: dict[str, list[PlacedNode]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node)
    yield from sorted(groups.items())
