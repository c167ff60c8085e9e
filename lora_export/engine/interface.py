"""The values of a graph that a parser or a device treats in a way of its own.

Inputs that are optional or dynamic, integers and doubles, and precisions that the target lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx

from lora_export.base.targets import AUTO
from lora_export.engine.findings import Finding
from lora_export.engine.graph_view import tensor_type
from lora_export.engine.parser_table import ONNX_TYPES
from lora_export.engine.ranges import Range, ranges_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.base.targets import Target
    from lora_export.engine.graph_view import GraphView

__all__ = [
    "axis_ranges",
    "check_axes",
    "check_optional_inputs",
    "check_precisions",
    "check_types",
    "dynamic_axes",
]

_TENSOR: Final = onnx.TensorProto
_PRECISIONS: Final = {
    _TENSOR.FLOAT16: "fp16",
    _TENSOR.BFLOAT16: "bf16",
    _TENSOR.INT8: "int8",
    _TENSOR.FLOAT8E4M3FN: "fp8",
    _TENSOR.INT4: "int4",
    _TENSOR.FLOAT4E2M1: "fp4",
}
"""What a device needs tensor cores for, by ``TensorProto.DataType``."""


def dynamic_axes(view: GraphView) -> dict[str, tuple[str, ...]]:
    """Return the inputs that have each axis whose size is the caller's; ``?`` for one without name.

    Inputs that are initializers too count: without their defaults they are fed as any other.
    """
    found: dict[str, list[str]] = {}
    for value in view.model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                found.setdefault(axis.dim_param or "?", []).append(value.name)
    return {axis: tuple(dict.fromkeys(names)) for axis, names in found.items()}


def axis_ranges(view: GraphView, given: Mapping[str, Range]) -> dict[str, Range]:
    """Return the range of each dynamic axis that has one.

    An axis of an optional input (``labels`` of a head) that has no other keeps the size that the
    input has by default.

    Args:
        view: The graph.
        given: The ranges that the user gave, by axis.
    """
    defaults = {each.name: each.dims for each in view.model.graph.initializer}
    kept: dict[str, Range] = {}
    for value in view.model.graph.input:
        axes = value.type.tensor_type.shape.dim
        for axis, size in zip(axes, defaults.get(value.name, ()), strict=False):
            if axis.dim_param and size:
                kept[axis.dim_param] = Range(size, size, size)
    return kept | ranges_of(dynamic_axes(view), given)


def check_axes(view: GraphView, given: Mapping[str, Range]) -> Iterator[Finding]:
    """Yield the axes that no optimization profile can be made for; note the ranges of the others.

    Args:
        view: The graph.
        given: The ranges that the user gave, by axis.
    """
    axes = dynamic_axes(view)
    ranges = axis_ranges(view, given)
    for axis, names in axes.items():
        if axis not in ranges:
            named = "an axis without a name" if axis == "?" else f"the axis {axis!r}"
            yield Finding(
                "error",
                "dynamic-shape",
                f"axis {axis}",
                f"{named} has no range, and TensorRT builds for ranges only",
                "Export again with named axes." if axis == "?" else f"Add --axis {axis}=1:8:64.",
                names,
            )
    shown = {axis.rpartition(".")[2]: str(each) for axis, each in ranges.items()}
    if shown:
        yield Finding(
            "note",
            "dynamic-shape",
            f"{len(shown)} dynamic axes" if len(shown) > 1 else "1 dynamic axis",
            "built for " + ", ".join(f"{axis} {each}" for axis, each in sorted(shown.items())),
            "Say otherwise with --axis AXIS=MIN:OPT:MAX.",
        )


def check_optional_inputs(view: GraphView) -> Iterator[Finding]:
    """Yield the inputs that are initializers too: the parser drops them, with what they stand for.

    ``ModelImporter.cpp`` of onnx-tensorrt takes a name that an initializer has for a constant.
    """
    own = {each.name for each in view.model.graph.initializer}
    optional = tuple(each.name for each in view.model.graph.input if each.name in own)
    if optional:
        yield Finding(
            "note",
            "optional-input",
            f"{len(optional)} optional inputs",
            "TensorRT has no optional inputs: its parser drops them, and the engine would compute "
            "the base, whatever is fed. The build takes their defaults out, so that they become "
            "inputs with a profile, and the base runs with tensors of rank 0",
            "Build with lora-export build; do not give this file to trtexec as it is.",
            optional,
        )


def check_types(view: GraphView) -> Iterator[Finding]:
    """Yield where the graph has doubles, integers of 64 bits, or types that TensorRT lacks."""
    graph = view.model.graph
    values = {value.name: tensor_type(value) for value in (*graph.input, *graph.output)}
    inputs = {value.name for value in graph.input}
    inner = {name: kind for node in view.nodes for name, kind in node.scope.types.items()}
    doubles = tuple(name for name, kind in (inner | values).items() if kind == _TENSOR.DOUBLE)
    if doubles:
        yield Finding(
            "warning",
            "double",
            "FP64",
            "TensorRT computes doubles as FP32, and clamps what FP32 cannot hold",
            "Export it in float32.",
            doubles,
        )
    long = tuple(name for name, kind in values.items() if kind == _TENSOR.INT64)
    if long:
        fed = sum(name in inputs for name in long)
        yield Finding(
            "note",
            "int64",
            "INT64",
            f"{fed} inputs and {len(long) - fed} outputs are int64, and stay so: TensorRT 10 and "
            "newer want int64 buffers for them, not int32",
            where=long,
        )
    for name, kind in values.items():
        if kind not in ONNX_TYPES:
            word = _TENSOR.DataType.Name(kind) if kind else "no tensor"
            message = f"it is {word}, which TensorRT does not have"
            hint = "Take it out of the graph, before or behind what the engine computes."
            yield Finding("error", "type", name, message, hint, (name,))


def check_precisions(view: GraphView, target: Target) -> Iterator[Finding]:
    """Yield the precisions of the graph that the target does not compute in."""
    graph = view.model.graph
    kinds = {each.data_type: each.name for each in reversed(graph.initializer)}
    kinds |= {tensor_type(each): each.name for each in (*graph.output, *graph.input)}
    for node in view.nodes:
        for name in node.node.output:
            kinds.setdefault(node.scope.types.get(name, 0), name)
    for kind, precision in _PRECISIONS.items():
        if kind in kinds and precision not in target.precisions:
            yield Finding(
                "warning" if target.name == AUTO else "error",
                "precision",
                precision,
                "not every device has it; which one this is, is known when the engine is built"
                if target.name == AUTO
                else f"the graph computes in {precision}, and {target.name} does not; "
                f"it has {', '.join(target.precisions)}",
                "Export again with --dtype float16.",
                (kinds[kind],),
            )
