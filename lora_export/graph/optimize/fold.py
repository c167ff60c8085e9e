"""Folding of a traced graph: shape arithmetic, transposed weights, unused nodes.

In order: (1) constants and shape arithmetic are folded by onnxscript; (2) what stands for one
operation becomes one node (`lora_export.graph.optimize.opset_nodes`,
`lora_export.graph.optimize.rewrite`); (3) what tracing left behind (stack traces, symbol names,
inferred shapes) is removed, so that equal models give equal bytes; (4)
`lora_export.graph.optimize.settle` shares constants and nodes and lays the weights out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from lora_export.graph.nodes.equal_sizes import order_sums
from lora_export.graph.optimize.onnxscript_private import (
    constant_folding,
    local_rewrites,
    without_prints,
)
from lora_export.graph.optimize.opset_nodes import fuse
from lora_export.graph.optimize.rewrite import rewrite
from lora_export.graph.optimize.settle import apply_passes, remove_traces, settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.signature import Signature

__all__ = ["fold", "simplify"]


def fold(
    model: ir.Model, parameters: Sequence[Parameter], signature: Signature
) -> tuple[Parameter, ...]:
    """Fold `model` in place; return the parameters with the layout that the graph now reads.

    Args:
        model: The traced graph; mutated.
        parameters: Its parameters, without values.
        signature: Its interface, which names the axes.
    """
    simplify(model, signature)
    return settle(model, parameters)


def simplify(model: ir.Model, signature: Signature) -> None:
    """Do what does not depend on which of the constants are equal; mutates `model`."""
    _fold_constants(model)
    fuse(model)
    rewrite(model)
    order_sums(model)
    apply_passes(model, common_passes.RemoveUnusedNodesPass())
    _name_axes(model, signature)
    remove_traces(model)


def _fold_constants(model: ir.Model) -> None:
    """Fold constants and shape arithmetic, and apply onnxscript's local simplifications."""
    with without_prints():
        apply_passes(
            model,
            common_passes.InlinePass(),
            ir.passes.PassManager(
                [
                    constant_folding(input_size_limit=8192, output_size_limit=512 * 512),
                    local_rewrites(),
                    common_passes.RemoveUnusedNodesPass(),
                    common_passes.RemoveUnusedOpsetsPass(),
                ],
                steps=2,
                early_stop=True,
            ),
            common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common_passes.CommonSubexpressionEliminationPass(),
            common_passes.OutputFixPass(),
            common_passes.NameFixPass(),
        )


def _name_axes(model: ir.Model, signature: Signature) -> None:
    """Name the symbolic axes of inputs and outputs as users know them; mutates `model`."""
    for value, given in zip(model.graph.inputs, signature.inputs, strict=True):
        value.shape = ir.Shape(given.axes)
    for value, promised in zip(model.graph.outputs, signature.outputs, strict=True):
        if value.shape is None:
            continue
        axes: list[int | str | None] = [
            axis if isinstance(axis, int) else None for axis in tuple(value.shape)
        ]
        for position, axis_name in enumerate(promised.axes):
            if not isinstance(axes[position], int):
                axes[position] = axis_name
        value.shape = ir.Shape(axes)
