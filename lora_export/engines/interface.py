"""Checks of types, precisions and optional inputs against a parser and a device.

Optional inputs, integers and doubles, and precisions that the target lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx

from lora_export.core.targets import AUTO
from lora_export.engines.findings import Finding
from lora_export.engines.graph_view import tensor_type, type_name
from lora_export.engines.parser_table import ONNX_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.core.targets import Target
    from lora_export.engines.graph_view import GraphView

__all__ = [
    "check_optional_inputs",
    "check_precisions",
    "check_types",
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
_INSTEAD: Final = {
    "int4": "Export again with --quantize int8, or without --quantize.",
    "int8": "Export again without --quantize.",
}


def check_optional_inputs(model: onnx.ModelProto) -> Iterator[Finding]:
    """Yield the inputs that are initializers too: the parser drops them, with what they stand for.

    ``ModelImporter.cpp`` of onnx-tensorrt takes a name that an initializer has for a constant.
    """
    own = {each.name for each in model.graph.initializer}
    optional = tuple(each.name for each in model.graph.input if each.name in own)
    if optional:
        yield Finding(
            "note",
            "optional-input",
            f"{len(optional)} optional inputs",
            "TensorRT has no optional inputs: its parser drops them, and the engine would compute "
            "the base, whatever is fed. The build takes their defaults out, so that they become "
            "inputs with a profile, and the base runs with zeros",
            "Build with lora-export build; do not give this file to trtexec as it is.",
            optional,
        )


def check_types(view: GraphView) -> Iterator[Finding]:
    """Yield where the graph has doubles, integers of 64 bits, or types that TensorRT lacks."""
    graph = view.model.graph
    values = {value.name: tensor_type(value) for value in (*graph.input, *graph.output)}
    inputs = {value.name for value in graph.input}
    known = view.types | values
    doubles = tuple(name for name, kind in known.items() if kind == _TENSOR.DOUBLE)
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
        parts = {"input": inputs.intersection(long), "output": set(long) - inputs}
        shown = " and ".join(
            f"{len(each)} {word}{'s' if len(each) > 1 else ''}"
            for word, each in parts.items()
            if each
        )
        yield Finding(
            "note",
            "int64",
            "INT64",
            f"{shown} of int64 stay so: TensorRT 10 wants int64 buffers for them, not int32",
            where=long,
        )
    for name, kind in values.items():
        if kind not in ONNX_TYPES:
            word = type_name(kind) if kind else "no tensor"
            message = f"it is {word}, which TensorRT does not have"
            hint = "Take it out of the graph, before or after the part that the engine computes."
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
                _INSTEAD.get(precision, "Export again with --dtype float16."),
                (kinds[kind],),
            )
