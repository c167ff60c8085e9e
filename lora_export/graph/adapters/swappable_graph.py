"""LoRA as optional inputs of a graph: one base in memory, any adapter, per request.

Where the base graph computes ``y = x W`` for an adapted weight, this one computes

    z = y + ((x A) · lora_scale) B          A [in, r], s folded into B [r, out]
    g ∘ z                                   DoRA; g [out] is m / ‖W + s·B A‖ of each output

and where y contains a bias b (``Gemm``), DoRA is ``z + (g - 1) ∘ (z - b)``. A, B, g and
``lora_scale`` are graph inputs that are initializers too, so that nobody has to feed them: A and B
of rank 0, g and ``lora_scale`` ones. Without an adapter what is added is exactly zero. The term
stands before a bias that is added by a node of its own, so that runtimes fuse that bias with what
follows it (``BiasGelu``) as they do in the base graph.

``lora_scale`` is what PEFT multiplies its scaling by, where A B alone depends on that: g is the
factor of the scale 1, and so is the bias of a B (``lora_bias``) that is folded into the module's.

Each weight's rank is an axis of its own name: ONNX Runtime shares buffers between values whose axes
are called the same, and one adapter may have several ranks, and rank 0 where it changes nothing.

Heads and biases that adapters carry whole are optional inputs under their own names, with the
base's values as default and the layout that the graph stores them in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import onnx
from onnx import helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.nodes.weight_uses import (
    ONE,
    Use,
    forget_shapes,
    node,
    readers_of,
    rescaled,
    sizes_of,
    unsupported,
    use_of,
)
from lora_export.graph.quantize.quantized_graph import (
    dequantized_dtypes,
    join_readers,
    separate_readers,
)
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.trt.swappable_inputs import LORA_A, LORA_B

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.signature import Axis

__all__ = [
    "LABELS_AXIS",
    "LORA_A",
    "LORA_B",
    "LORA_SCALE",
    "MAGNITUDE",
    "Slots",
    "input_a",
    "input_b",
    "input_magnitude",
    "optional_inputs",
    "with_lora",
]

LORA_SCALE: Final = "lora_scale"
MAGNITUDE: Final = ".lora_magnitude.scale"
LABELS_AXIS: Final = "labels"


@dataclass(frozen=True)
class Slots:
    """The optional inputs that a swappable graph gets.

    Attributes:
        adapted: Weights that get a low-rank term.
        magnitudes: Names of those that get DoRA's factor too.
        values: Parameters that an adapter may carry whole: heads, biases.
        resizable: Names of those whose first axis (in the model) is the number of labels.
    """

    adapted: tuple[Parameter, ...]
    magnitudes: frozenset[str] = frozenset()
    values: tuple[Parameter, ...] = ()
    resizable: frozenset[str] = field(default=frozenset(), repr=False)


def input_a(weight: str) -> str:
    """Return the name of the input that holds A of a weight, ``[in, r]``."""
    return _module(weight) + LORA_A


def input_b(weight: str) -> str:
    """Return the name of the input that holds s·B of a weight, ``[r, out]``."""
    return _module(weight) + LORA_B


def input_magnitude(weight: str) -> str:
    """Return the name of the input that holds DoRA's factor of a weight, ``[out]``."""
    return _module(weight) + MAGNITUDE


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


def with_lora(onnx_bytes: bytes, slots: Slots) -> bytes:
    """Return the graph with `slots` as optional inputs; the same input, the same bytes.

    Args:
        onnx_bytes: The base graph; its parameters may lie in other files.
        slots: What adapters may give.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
        UnsupportedError: A weight is not read by a ``MatMul``, ``Gemm`` or ``Gather``, or is no
            matrix.
    """
    model = parse_onnx(onnx_bytes)
    join_readers(model)
    graph = model.graph
    nodes = list(graph.node)
    added: dict[int, list[onnx.NodeProto]] = {}
    made: list[onnx.TensorProto] = []
    dtypes = {each.name: each.data_type for each in graph.initializer}
    dtypes |= dequantized_dtypes(graph)
    missing = {each.name for each in (*slots.adapted, *slots.values)} - set(dtypes)
    if missing:
        msg = f"the graph has no initializer {min(missing)!r}"
        raise ExportDirectoryError(msg, hint="Graph and manifest are not of one export.")
    forget_shapes(graph, slots.resizable)
    uses = _uses(nodes, slots, dtypes)
    for parameter in slots.adapted:
        dora = parameter.name in slots.magnitudes
        for use in uses[parameter.name]:
            added.setdefault(use.at, []).extend(_term(nodes[use.at], use, parameter, dora=dora))
        made += _defaults(graph, parameter, dtypes[parameter.name], dora=dora)
    if slots.adapted:
        dtype = dtypes[slots.adapted[0].name]
        made.append(_constant(graph, LORA_SCALE, dtype, [], 1.0))
        if slots.magnitudes:
            made.append(helper.make_tensor(ONE, dtype, [], [1.0]))
    _open_values(graph, slots, dtypes)
    graph.initializer.extend(made)
    del graph.node[:]
    for at, old in enumerate(nodes):
        graph.node.extend([old, *added.get(at, ())])
    separate_readers(model)
    placed: bytes = model.SerializeToString(deterministic=True)
    return placed


def optional_inputs(onnx_bytes: bytes) -> Mapping[str, tuple[Axis, ...]]:
    """Return the axes of each input of a graph that has a default, by its name.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
    """
    graph = parse_onnx(onnx_bytes).graph
    own = {each.name for each in graph.initializer}
    return {
        value.name: tuple(
            axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
        )
        for value in graph.input
        if value.name in own
    }


def _uses(
    nodes: Sequence[onnx.NodeProto], slots: Slots, dtypes: Mapping[str, int]
) -> dict[str, list[Use]]:
    """Return where each weight that gets a term is read; they are of one dtype."""
    readers = readers_of(nodes)
    found: dict[str, list[Use]] = {}
    for parameter in slots.adapted:
        if dtypes[parameter.name] != dtypes[slots.adapted[0].name]:
            raise unsupported(parameter, f"it is {parameter.dtype}, others are not")
        found[parameter.name] = [use_of(nodes, at, parameter) for at in readers[parameter.name]]
        if not found[parameter.name]:
            raise unsupported(parameter, "no node reads it")
    return found


def _term(
    target: onnx.NodeProto, use: Use, parameter: Parameter, *, dora: bool
) -> list[onnx.NodeProto]:
    """Return the nodes that add the term behind `target`; its output's name moves to the last."""
    out = target.output[0]
    base = f"{out}.base"
    target.output[0] = base
    a, b = input_a(parameter.name), input_b(parameter.name)

    thin, scaled, delta = f"{out}.lora_A", f"{out}.lora_A.scaled", f"{out}.lora_B"
    nodes = [
        node("Gather", [a, use.x], thin) if use.gather else node("MatMul", [use.x, a], thin),
        node("Mul", [thin, LORA_SCALE], scaled),
        node("MatMul", [scaled, b], delta),
        node("Add", [base, delta], f"{out}.lora" if dora else out),
    ]
    if not dora:
        return nodes
    return nodes + rescaled(f"{out}.lora", input_magnitude(parameter.name), use.bias, out)


def _defaults(
    graph: onnx.GraphProto, parameter: Parameter, dtype: int, *, dora: bool
) -> list[onnx.TensorProto]:
    """Declare A, B and the magnitude of a weight as inputs; return their defaults."""
    inputs, outputs = sizes_of(parameter)
    a, b = input_a(parameter.name), input_b(parameter.name)
    rank = f"{_module(parameter.name)}.lora_r"
    _declare(graph, a, dtype, [inputs, rank])
    _declare(graph, b, dtype, [rank, outputs])
    made = [helper.make_tensor(a, dtype, [inputs, 0], b"", raw=True)]
    made.append(helper.make_tensor(b, dtype, [0, outputs], b"", raw=True))
    if dora:
        made.append(_constant(graph, input_magnitude(parameter.name), dtype, [outputs], 1.0))
    return made


def _constant(
    graph: onnx.GraphProto, name: str, dtype: int, shape: list[int], value: float
) -> onnx.TensorProto:
    """Declare an optional input; return its default, `value` everywhere."""
    _declare(graph, name, dtype, [*shape])
    return helper.make_tensor(name, dtype, shape, [value] * (shape[0] if shape else 1))


def _declare(graph: onnx.GraphProto, name: str, dtype: int, shape: Sequence[str | int]) -> None:
    graph.input.append(helper.make_tensor_value_info(name, dtype, shape))


def _open_values(graph: onnx.GraphProto, slots: Slots, dtypes: Mapping[str, int]) -> None:
    """Declare the parameters that adapters carry whole; the output's width is that of the head."""
    for parameter in slots.values:
        axes: list[str | int] = [*parameter.stored_shape]
        if parameter.name in slots.resizable:
            axes[-1 if parameter.transposed else 0] = LABELS_AXIS
        _declare(graph, parameter.name, dtypes[parameter.name], axes)
    if any(parameter.name in slots.resizable for parameter in slots.values):
        width = graph.output[0].type.tensor_type.shape.dim[-1]
        width.Clear()
        width.dim_param = LABELS_AXIS
