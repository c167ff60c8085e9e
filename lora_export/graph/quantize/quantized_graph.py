"""A float graph rewritten to read quantized weights.

    product     DequantizeLinear(P.quantized, P.scale[, P.zero_point]) → P → the node as it was
    product     MatMulBnb4(x, P.quantized, P.scale), where codes are four-bit floats
    rows        Gather(P.quantized) → Cast → Mul(Gather(P.scale)) → the Gather's output

The value of a weight that products read is called as the parameter is, so that whoever looks for
the readers of a parameter finds them in a quantized graph as in a float one. ONNX Runtime fuses
``DequantizeLinear`` and ``MatMul`` into one node where each initializer has one reader only: a
second reader gets initializers of its own, which point at the same bytes (`separate_readers`).
TensorRT takes integers behind a ``DequantizeLinear`` only, see `lora_export.ondevice.trt.parsing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx
from onnx import TensorProto, helper

from lora_export.core.quantization import (
    INTEGERS,
    integers_name,
    scales_name,
    stored_name,
    zero_points_name,
)
from lora_export.graph.nodes.weight_uses import readers_of
from lora_export.graph.quantize.bnb4_products import (
    BNB4_PRODUCT,
    FLOAT4_VALUE,
    float4_value,
    products_of_codes,
    products_of_values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.core.parameters import Parameter

__all__ = [
    "dequantized_dtypes",
    "drop_unread",
    "join_readers",
    "quantize_graph",
    "separate_readers",
]

_DEQUANTIZE: Final = "DequantizeLinear"
_ONNX_DTYPES: Final[Mapping[int, int]] = {4: TensorProto.INT4, 8: TensorProto.INT8}
_LAST: Final = "quantized_last_axis"
_FIRST_COPY: Final = 2
_WITHOUT_ZEROS: Final = 2


def quantize_graph(
    model: onnx.ModelProto, parameters: Sequence[Parameter], ranks: Mapping[str, int]
) -> None:
    """Rewrite a graph so that it reads the parameters that are quantized as they are; mutates it.

    Args:
        model: A float graph, whose initializers may lie in other files.
        parameters: Its parameters; those with a scheme are rewritten.
        ranks: The rank of each value that is an index into a quantized embedding.
    """
    graph = model.graph
    wanted = {each.name: each for each in parameters if each.quantized is not None}
    own = {each.name for each in graph.initializer}
    dtypes = {each.name: each.data_type for each in graph.initializer}
    added: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    dequantized: set[str] = set()
    for node in graph.node:
        name = next((each for each in node.input if each in wanted and each in own), None)
        if name is None:
            nodes.append(node)
            continue
        parameter = wanted[name]
        if node.op_type == "Gather":
            nodes += _looked_up(node, parameter, dtypes[name], ranks[node.input[1]])
            continue
        _plain_product(node)
        if name not in dequantized:
            dequantized.add(name)
            nodes.append(_dequantize(parameter))
            if parameter.quantized is not None and parameter.quantized.floats is not None:
                nodes[-1] = float4_value(parameter)
        nodes.append(node)
    for name, parameter in wanted.items():
        if name in own:
            added += _initializers(parameter, dtypes[name])
    kept = [each for each in graph.initializer if each.name not in wanted]
    if any(node.op_type == "Unsqueeze" and _LAST in node.input for node in nodes):
        added.append(helper.make_tensor(_LAST, TensorProto.INT64, [1], [-1]))
    shapes = [each for each in graph.value_info if each.name not in wanted]
    _replace(graph.initializer, [*kept, *added])
    _replace(graph.node, nodes)
    _replace(graph.value_info, shapes)
    separate_readers(model)


def _replace(field: object, values: Sequence[object]) -> None:
    """Give a repeated field of a protocol buffer other values."""
    del field[:]  # type: ignore[attr-defined]
    field.extend(values)  # type: ignore[attr-defined]


def _initializers(parameter: Parameter, dtype: int) -> list[onnx.TensorProto]:
    """Return a parameter's integers, scales and zero points, to be placed in a file."""
    quantized, shape = parameter.quantized, parameter.stored_shape
    assert quantized is not None  # noqa: S101  (by the caller)
    made, integer = [], _ONNX_DTYPES[quantized.bits]
    stored = (integers_name(parameter.name), integer, shape)
    if quantized.floats is not None:
        stored = (stored[0], TensorProto.UINT8, (quantized.integers_bytes(shape),))
    rows = [
        stored,
        (scales_name(parameter.name), dtype, quantized.scales_shape(shape)),
    ]
    if quantized.zero_points:
        rows.append((zero_points_name(parameter.name), integer, quantized.scales_shape(shape)))
    for name, kind, dims in rows:
        tensor = TensorProto(name=name, data_type=kind, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        made.append(tensor)
    return made


def _dequantize(parameter: Parameter) -> onnx.NodeProto:
    quantized, name = parameter.quantized, parameter.name
    assert quantized is not None  # noqa: S101  (by the caller)
    zeros = [zero_points_name(name)] if quantized.zero_points else []
    made = helper.make_node(
        _DEQUANTIZE, [integers_name(name), scales_name(name), *zeros], [name],
        name=f"{name}.{_DEQUANTIZE}", axis=quantized.axis,
    )  # fmt: skip
    if quantized.block_size:
        made.attribute.append(helper.make_attribute("block_size", quantized.block_size))
    return made


def _plain_product(node: onnx.NodeProto) -> None:
    """Take ``transB`` off a Gemm: a weight that it read transposed is stored transposed now."""
    kept = [each for each in node.attribute if each.name != "transB"]
    if node.op_type == "Gemm" and len(kept) != len(node.attribute):
        _replace(node.attribute, kept)


def _looked_up(
    node: onnx.NodeProto, parameter: Parameter, dtype: int, rank: int
) -> list[onnx.NodeProto]:
    """Return the nodes that look up rows of integers and scale each by its own scale."""
    quantized, out, name = parameter.quantized, node.output[0], parameter.name
    assert quantized is not None  # noqa: S101  (by the caller)
    indices = node.input[1]
    rows = f"{out}.integers"
    made = [
        helper.make_node(
            "Gather",
            [integers_name(name), indices],
            [rows],
            name=f"{rows}.Gather",
            axis=quantized.axis,
        )
    ]
    if quantized.axis:
        last = [*range(1, rank + 1), 0]
        turned = f"{out}.rows"
        made.append(
            helper.make_node("Transpose", [rows], [turned], name=f"{turned}.Transpose", perm=last)
        )
        rows = turned
    scale, values = f"{out}.scale", f"{out}.values"
    made += [
        helper.make_node("Cast", [rows], [values], name=f"{values}.Cast", to=dtype),
        helper.make_node(
            "Gather", [scales_name(name), indices], [f"{scale}.row"], name=f"{scale}.row.Gather"
        ),
        helper.make_node("Unsqueeze", [f"{scale}.row", _LAST], [scale], name=f"{scale}.Unsqueeze"),
        helper.make_node("Mul", [values, scale], [out], name=node.name),
    ]
    return made


def separate_readers(model: onnx.ModelProto) -> None:
    """Give each reader of quantized integers and their scales initializers of its own; mutates.

    The first keeps the names, further ones get ``P.quantized.2`` and ``P.scale.2``, and a product
    its own ``DequantizeLinear``. Products with four-bit floats read the codes themselves.
    `join_readers` undoes it.
    """
    products_of_codes(model)
    graph = model.graph
    readers = readers_of(graph.node)
    added: list[onnx.TensorProto] = []
    before: dict[int, list[onnx.NodeProto]] = {}
    initializers = {each.name: each for each in graph.initializer}
    of_codes = {node.input[1] for node in graph.node if node.op_type == BNB4_PRODUCT}
    for name in [each for each in initializers if each.endswith(INTEGERS) and each not in of_codes]:
        parameter = name.removesuffix(INTEGERS)
        number = 1
        for at in list(readers[name]):
            node = graph.node[at]
            if node.op_type != _DEQUANTIZE:
                number = _take_number(graph, at, parameter, number)
                continue
            value = node.output[0]
            for position, reader in enumerate(list(readers.get(value, ()))):
                own = node
                if position:
                    own = onnx.NodeProto()
                    own.CopyFrom(node)
                    _name_value(own, graph.node[reader], value, f"{parameter}.{number}")
                    before.setdefault(reader, []).append(own)
                own.input[0] = integers_name(parameter, number)
                own.input[1] = scales_name(parameter, number)
                if len(own.input) > _WITHOUT_ZEROS:
                    own.input[_WITHOUT_ZEROS] = zero_points_name(parameter, number)
                number += 1
        for further in range(_FIRST_COPY, number):
            for source, target in (
                (name, integers_name(parameter, further)),
                (scales_name(parameter), scales_name(parameter, further)),
                (zero_points_name(parameter), zero_points_name(parameter, further)),
            ):
                if source not in initializers:
                    continue
                tensor = onnx.TensorProto()
                tensor.CopyFrom(initializers[source])
                tensor.name = target
                added.append(tensor)
    graph.initializer.extend(added)
    _replace(graph.node, [*_with(graph.node, before)])


def _take_number(graph: onnx.GraphProto, at: int, parameter: str, number: int) -> int:
    """Let the Gather of rows at a position, and that of their scales, read copies of their own."""
    rows = graph.node[at]
    rows.input[0] = integers_name(parameter, number)
    out = rows.output[0].removesuffix(".integers")
    scales = next(node for node in graph.node if node.output[0] == f"{out}.scale.row")
    scales.input[0] = scales_name(parameter, number)
    return number + 1


def _name_value(
    dequantizer: onnx.NodeProto, reader: onnx.NodeProto, before: str, after: str
) -> None:
    """Give the value of a ``DequantizeLinear`` another name, also in the node that reads it."""
    dequantizer.output[0] = after
    dequantizer.name = f"{after}.{_DEQUANTIZE}"
    for position, name in enumerate(reader.input):
        if name == before:
            reader.input[position] = after


def _with(
    nodes: Sequence[onnx.NodeProto], before: Mapping[int, Sequence[onnx.NodeProto]]
) -> Iterator[onnx.NodeProto]:
    for at, node in enumerate(nodes):
        yield from before.get(at, ())
        yield node


def join_readers(model: onnx.ModelProto) -> None:
    """Undo `separate_readers`: one value for each parameter, read by all; mutates."""
    graph = model.graph
    names = {each.name for each in graph.initializer}
    copies = {each: stored_name(each) for each in names if stored_name(each) in names - {each}}
    renamed: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    seen: set[str] = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, copies.get(name, name))
        if node.op_type == _DEQUANTIZE and node.input[0].endswith(INTEGERS):
            parameter = node.input[0].removesuffix(INTEGERS)
            renamed[node.output[0]] = parameter
            node.output[0] = parameter
            node.name = f"{parameter}.{_DEQUANTIZE}"
            if parameter in seen:
                continue
            seen.add(parameter)
        kept.append(node)
    _replace(graph.initializer, [each for each in graph.initializer if each.name not in copies])
    _replace(graph.node, kept)
    products_of_values(model)


def dequantized_dtypes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the ONNX dtype of each parameter that a graph reads as integers and scales."""
    dtypes = {each.name: each.data_type for each in graph.initializer}
    return {
        node.output[0]: dtypes[node.input[1]]
        for node in graph.node
        if node.op_type in {_DEQUANTIZE, FLOAT4_VALUE}
        and node.input[0] == integers_name(node.output[0])
        and node.input[1] in dtypes
    }


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the values, dequantized, of parameters that no node reads any more; mutates."""
    read = set(readers_of(graph.node)) | {each.name for each in graph.output}
    kept = [
        node
        for node in graph.node
        if node.op_type not in {_DEQUANTIZE, FLOAT4_VALUE} or not read.isdisjoint(node.output)
    ]
    _replace(graph.node, kept)
