"""Operators that TensorRT's parser supports in part, with what it refuses, by version.

Sources: the column "Restrictions" of onnx-tensorrt's ``docs/operators.md`` (10.1 and 10.15), its
``docs/Changelog.md`` and TensorRT's release notes; of TensorRT for RTX, its parser itself, which a
test asks about every row. Only what transformers and their exporters make use of is here; the rest
is left to the parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.trt.libraries import TENSORRT, TENSORRT_RTX

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.engines.findings import Severity
    from lora_export.engines.graph_view import PlacedNode
    from lora_export.engines.parser_table import Parser

__all__ = ["RESTRICTIONS", "Restriction", "broken_by"]

_ALWAYS: Final = (1000, 0)
_BOTH: Final = (TENSORRT, TENSORRT_RTX)
_TENSORRT: Final = (TENSORRT,)
_RTX: Final = (TENSORRT_RTX,)


@dataclass(frozen=True)
class Restriction:
    """A part of an operator that the parser does not support.

    Attributes:
        operator: The operator.
        broken: Whether a node asks for it.
        text: What is not taken.
        until: The version that takes it.
        severity: Whether the parser refuses it, or only is known to have read it wrongly.
        libraries: The libraries whose parser does not take it.
    """

    operator: str
    broken: Callable[[PlacedNode], bool]
    text: str
    until: tuple[int, int] = _ALWAYS
    severity: Severity = "error"
    libraries: tuple[str, ...] = _BOTH


def _computed(at: int) -> Callable[[PlacedNode], bool]:
    """Return whether the input `at` is given and no constant."""
    return lambda node: bool(node.input(at)) and node.input(at) not in node.scope.constants


def _has_input(*places: int) -> Callable[[PlacedNode], bool]:
    return lambda node: any(node.input(at) for at in places)


def _has_output(*places: int) -> Callable[[PlacedNode], bool]:
    return lambda node: any(node.output(at) for at in places)


def _rank_is_not(rank: int, *places: int) -> Callable[[PlacedNode], bool]:
    """Return whether one of the inputs is known to have another rank."""
    return lambda node: any(node.scope.ranks.get(node.input(at), rank) != rank for at in places)


def _sets(attribute: str, *allowed: object) -> Callable[[PlacedNode], bool]:
    """Return whether an attribute is none of the values that are allowed, the default first."""
    return lambda node: node.attribute(attribute, allowed[0]) not in allowed


def _given(attribute: str) -> Callable[[PlacedNode], bool]:
    """Return whether an attribute is there, whatever its value."""
    return lambda node: node.attribute(attribute) is not None


def _opset_from(opset: int) -> Callable[[PlacedNode], bool]:
    return lambda node: node.opset >= opset


_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_AXES: Final = "axes that the graph computes"

RESTRICTIONS: Final = (
    Restriction("Slice", _computed(3), _AXES, (10, 3)),
    Restriction("Pad", _computed(3), _AXES, (10, 4)),
    Restriction("Squeeze", _computed(1), _AXES, (10, 7)),
    Restriction("Unsqueeze", _computed(1), _AXES, (10, 7)),
    Restriction("CumSum", _computed(1), "an axis that the graph computes", (10, 8)),
    *(Restriction(name, _computed(1), _AXES) for name in _REDUCTIONS),
    *(Restriction(name, _computed(1), _AXES, libraries=_RTX) for name in ("Squeeze", "Unsqueeze")),
    Restriction("OneHot", _computed(1), "a depth that the graph computes", libraries=_TENSORRT),
    Restriction(
        "Einsum", lambda node: "..." in str(node.attribute("equation")), "an ellipsis", (10, 12)
    ),
    Restriction("ScatterND", _sets("reduction", b"none"), "a reduction"),
    Restriction("ScatterElements", _sets("reduction", b"none"), "a reduction", libraries=_RTX),
    Restriction("ScatterND", _opset_from(18), "opset 18 and later", (10, 9), severity="warning"),
    Restriction("GroupNormalization", _opset_from(21), "opset 21 and later", (10, 9)),
    Restriction("LayerNormalization", _has_output(1, 2), "outputs after the first"),
    Restriction("MaxPool", _has_output(1), "the output of indices"),
    Restriction("TopK", _sets("sorted", 1), "results that are not sorted", libraries=_TENSORRT),
    Restriction(
        "Attention",
        _rank_is_not(4, 0, 1, 2),
        "Q, K and V that do not have four axes",
        libraries=_TENSORRT,
    ),
    Restriction("Attention", _has_input(4, 5), "past keys and values as inputs of the operator"),
    Restriction(
        "Attention",
        _has_input(6),
        "lengths of keys and values (nonpad_kv_seqlen)",
        libraries=_TENSORRT,
    ),
    Restriction("Attention", _has_output(1, 2, 3), "outputs after the first"),
    Restriction("Attention", _sets("softcap", 0.0), "a softcap"),
    Restriction("Attention", _given("softmax_precision"), "a precision of its own for the softmax"),
    Restriction("TensorScatter", _rank_is_not(4, 0, 1), "caches that do not have four axes"),
    Restriction("TensorScatter", _sets("axis", -2, 2), "another axis than the last but one"),
    Restriction("TensorScatter", _sets("mode", b"linear"), "another mode than linear"),
)


def broken_by(node: PlacedNode, parser: Parser) -> list[Restriction]:
    """Return the restrictions of a parser that a node does not keep."""
    return [
        each
        for each in RESTRICTIONS
        if each.operator == node.node.op_type
        and parser.library in each.libraries
        and parser.number < each.until
        and each.broken(node)
    ]
