"""Products with four-bit floats, as a node each, and as products with a value.

    in a file     MatMulBnb4(x, P.quantized, P.scale) → out
    in between    Float4Value(P.quantized, P.scale) → P [in, out]
                  MatMul(x, P) → out

``com.microsoft.MatMulBnb4`` has no value of the weight that others could read. Whatever changes a
graph (adapters as inputs, stacks) sees the second form, where a parameter is read as in any other
graph; ``Float4Value`` is no operator of any runtime, and never written. ``MatMulBnb4`` takes codes
of ``[out, in]`` in C order, the block of a row dividing its inputs: ONNX Runtime 1.32 computes
wrong products where it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import helper

from lora_export.core.four_bit_floats import BNB4_TYPES
from lora_export.core.quantization import INTEGERS, integers_name, scales_name

if TYPE_CHECKING:
    from lora_export.core.parameters import Parameter

__all__ = [
    "BNB4_PRODUCT",
    "FLOAT4_VALUE",
    "float4_value",
    "products_of_codes",
    "products_of_values",
]

BNB4_PRODUCT: Final = "MatMulBnb4"
FLOAT4_VALUE: Final = "Float4Value"
_DOMAIN: Final = "com.microsoft"
_DOMAIN_VERSION: Final = 1
_WITH_BIAS: Final = 3


def float4_value(parameter: Parameter) -> onnx.NodeProto:
    """Return the node of a parameter's value, ``[in, out]``."""
    quantized, name = parameter.quantized, parameter.name
    assert quantized is not None  # noqa: S101  (by the caller)
    assert quantized.floats is not None  # noqa: S101  (by the caller)
    outputs, inputs = parameter.stored_shape
    return _value_node(
        name,
        {
            "K": inputs,
            "N": outputs,
            "block_size": quantized.block_size,
            "quant_type": BNB4_TYPES[quantized.floats],
        },
    )


def _value_node(name: str, attributes: dict[str, Any]) -> onnx.NodeProto:
    return helper.make_node(
        FLOAT4_VALUE, [integers_name(name), scales_name(name)], [name],
        name=f"{name}.{FLOAT4_VALUE}", domain=_DOMAIN, **attributes,
    )  # fmt: skip


def products_of_codes(model: onnx.ModelProto) -> None:
    """Let every product with a value of four-bit floats read its codes; mutates."""
    graph = model.graph
    values = {node.output[0]: node for node in graph.node if node.op_type == FLOAT4_VALUE}
    if not values:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == FLOAT4_VALUE:
            continue
        value = values.get(node.input[1]) if len(node.input) > 1 else None
        nodes += [node] if value is None else _of_codes(node, value)
    _replace(graph.node, nodes)
    _replace(graph.value_info, [each for each in graph.value_info if each.name not in values])
    if all(each.domain != _DOMAIN for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, _DOMAIN_VERSION))


def _of_codes(product: onnx.NodeProto, value: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a product with codes, and the sum with the bias that a Gemm has."""
    out = product.output[0]
    bias = product.input[2] if len(product.input) == _WITH_BIAS else ""
    made = onnx.NodeProto()
    made.CopyFrom(value)
    made.op_type, made.name = BNB4_PRODUCT, product.name
    inputs = [product.input[0], *value.input]
    outputs = [f"{out}.product" if bias else out]
    _replace(made.input, inputs)
    _replace(made.output, outputs)
    if not bias:
        return [made]
    made.name = f"{outputs[0]}.{BNB4_PRODUCT}"
    return [made, helper.make_node("Add", [outputs[0], bias], [out], name=product.name)]


def products_of_values(model: onnx.ModelProto) -> None:
    """Undo `products_of_codes`, but for the operator of a bias; mutates."""
    graph = model.graph
    dtypes = {each.name: each.data_type for each in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    seen: set[str] = set()
    for node in graph.node:
        if node.op_type != BNB4_PRODUCT:
            nodes.append(node)
            continue
        name = node.input[1].removesuffix(INTEGERS)
        sizes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if name not in seen:
            seen.add(name)
            nodes.append(_value_node(name, sizes))
            shape = [sizes["K"], sizes["N"]]
            value = helper.make_tensor_value_info(name, dtypes[node.input[2]], shape)
            graph.value_info.append(value)
        out = node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [out], name=node.name))
    _replace(graph.node, nodes)


def _replace(field: Any, values: list[Any]) -> None:
    """Give a repeated field of a protocol buffer other values."""
    del field[:]
    field.extend(values)
