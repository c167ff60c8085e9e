"""A simplified graph, brought to the form in which it is stored.

In order: (1) of constants that are equal one is kept, and of nodes that then compute the same;
(2) a weight that is only read transposed is stored transposed, and the Transpose disappears; (3) a
weight that is read both ways (a tied head) keeps one layout, its MatMul becomes ``Gemm(transB=1)``.
Parameters have no values here, so nothing can merge two of them. What is done depends on the values
of constants, so that a graph whose numbers were filled in (`lora_export.graph.templates`) goes
through it as one that was traced.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.core.parameters import Parameter

__all__ = ["apply_passes", "remove_traces", "settle", "share"]

_MATRIX: Final = 2
_SWAPPED: Final = (1, 0)


def settle(model: ir.Model, parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Bring `model` to its stored form, in place; return the parameters that it reads.

    Args:
        model: A graph that `lora_export.graph.optimize.fold.simplify` made; mutated.
        parameters: Its parameters, without values, in the model's own layout.
    """
    share(model)
    names = {parameter.name for parameter in parameters}
    transposed = {name for name in sorted(names) if _fold_weight_transposes(model, name)}
    ir.passes.Sequential(common_passes.RemoveUnusedNodesPass())(model)
    remove_traces(model)
    used = set(model.graph.initializers)
    return tuple(
        replace(parameter, transposed=parameter.name in transposed)
        for parameter in parameters
        if parameter.name in used
    )


def share(model: ir.Model) -> None:
    """Keep one of constants that are equal, and one of nodes that then compute the same.

    A parameter has no value here, so none is taken for another.
    """
    apply_passes(
        model,
        common_passes.RemoveUnusedNodesPass(),
        common_passes.DeduplicateInitializersPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
    )


def apply_passes(model: ir.Model, *passes: ir.passes.PassBase) -> None:
    """Run `passes` on `model`, in place and without their remarks on parameters' missing values."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        ir.passes.Sequential(*passes)(model)
    finally:
        logger.setLevel(level)


def _is_swap(node: ir.Node | None) -> bool:
    """Whether `node` swaps the two axes of a matrix."""
    return (
        node is not None
        and node.op_type == "Transpose"
        and tuple(node.attributes.get_ints("perm", _SWAPPED)) == _SWAPPED
    )


def _fold_weight_transposes(model: ir.Model, name: str) -> bool:
    """Remove the transposes of one weight; return whether it is now stored transposed.

    Case 1: every reader is a swap: store it swapped, readers read it directly.
    Case 2: some readers are swaps that feed MatMul as the right operand, others read it as it is:
    those MatMuls become Gemm with ``transB=1`` on the one stored copy.
    Case 3: every reader is a Gemm with ``transB=1`` on a rank-2 input: already the best form.
    """
    weight = model.graph.initializers.get(name)
    if weight is None or weight.shape is None or len(weight.shape) != _MATRIX:
        return False
    swaps = [node for node, _ in weight.uses() if _is_swap(node)]
    if not swaps:
        return False
    if len(swaps) == len(weight.uses()):
        weight.shape = ir.Shape(tuple(reversed(tuple(weight.shape))))
        for swap in swaps:
            ir.convenience.replace_all_uses_with(swap.outputs[0], weight)
            model.graph.remove(swap, safe=True)
        return True
    for swap in swaps:
        for node, index in list(swap.outputs[0].uses()):
            if node.op_type == "MatMul" and index == 1:
                _matmul_to_gemm(model, node, weight)
    return False


def _matmul_to_gemm(model: ir.Model, matmul: ir.Node, weight: ir.Value) -> None:
    """Replace ``MatMul(x, Transpose(W))`` by ``Gemm(x as rows, W, transB=1)``; mutates `model`.

    x ``[..., in]`` is flattened to ``[rows, in]`` and the product unflattened to ``[..., out]``.
    """
    (x, _), (y,) = matmul.inputs, matmul.outputs
    assert x is not None  # noqa: S101  (MatMul has two inputs)
    assert weight.shape is not None  # noqa: S101  (checked by the caller)
    out_features, in_features = weight.shape.numpy()
    stem = y.name or matmul.name or "head"

    def constant(suffix: str, values: list[int]) -> ir.Value:
        tensor = ir.Tensor(np.array(values, np.int64), name=f"{stem}.{suffix}")
        value = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape(tensor.shape))
        value.type = ir.TensorType(ir.DataType.INT64)
        model.graph.initializers.add(value)
        return value

    rows = ir.node("Reshape", [x, constant("rows_shape", [-1, in_features])])
    gemm = ir.node("Gemm", [rows.outputs[0], weight], attributes={"transB": 1})
    dims = ir.node("Shape", [x], attributes={"start": 0, "end": -1})
    shape = ir.node("Concat", [dims.outputs[0], constant("features", [out_features])],
                    attributes={"axis": 0})  # fmt: skip
    back = ir.node("Reshape", [gemm.outputs[0], shape.outputs[0]])
    result = back.outputs[0]
    result.shape, result.type = y.shape, y.type
    added = [rows, gemm, dims, shape, back]
    for node, role in zip(added, ("rows", "gemm", "dims", "shape", "out"), strict=True):
        node.name = f"{stem}.{role}"
        node.outputs[0].name = f"{stem}.{role}"
    model.graph.insert_before(matmul, added)
    ir.convenience.replace_all_uses_with(y, result, replace_graph_outputs=True)
    name = y.name
    model.graph.remove(matmul, safe=True)
    result.name = name


def remove_traces(model: ir.Model) -> None:
    """Remove what says how the graph came about: stack traces, inferred shapes, symbol names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "main"
    model.graph.doc_string = None
    model.doc_string = None
    model.producer_name, model.producer_version = "lora-export", None
    kept: dict[int, ir.Value] = {
        id(value): value
        for value in (
            *model.graph.inputs,
            *model.graph.outputs,
            *model.graph.initializers.values(),
        )
    }
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if id(value) not in kept:
                value.shape, value.type = None, None
    for value in kept.values():
        value.metadata_props.clear()
        value.doc_string = None
