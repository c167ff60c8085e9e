"""Traced, folded, serialized: the template of a graph that was not in the cache."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lora_export.base.errors import UnsupportedError
from lora_export.graph.fold import fold
from lora_export.graph.stamp import NotRepeatingError, stamp
from lora_export.graph.template import GraphTemplate
from lora_export.graph.trace import Traced, trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.base.parameters import Parameter
    from lora_export.graph.signature import Choices
    from lora_export.graph.tasks import Task

__all__ = ["build_template"]

_PLACEHOLDER = "weights/base.safetensors"


def build_template(
    settings: Mapping[str, Any], task: Task, dtype: str, opset: int, choices: Choices
) -> GraphTemplate:
    """Trace and fold the model of `settings`; see `lora_export.graph.export.export_graph`."""
    traced, parameters = _traced_and_folded(settings, task, dtype, opset, choices)
    _externalise(traced.model, parameters)
    proto = ir.to_proto(traced.model)
    del proto.graph.value_info[:]  # shapes of values in between: a head may change its width
    return GraphTemplate(
        onnx_bytes=proto.SerializeToString(deterministic=True),
        parameters=parameters,
        prefix=traced.prefix,
        model_class=traced.model_class,
        opset=opset,
        conversions=traced.conversions,
    )


def _traced_and_folded(
    settings: Mapping[str, Any], task: Task, dtype: str, opset: int, choices: Choices
) -> tuple[Traced, tuple[Parameter, ...]]:
    """Trace equal layers once and stamp out the others, or else trace them all."""
    with contextlib.suppress(UnsupportedError, NotRepeatingError):
        traced = trace(settings, task, dtype, opset, choices=choices)
        parameters = fold(traced.model, traced.parameters, traced.signature)
        return traced, stamp(traced.model, parameters, traced.repeats)
    traced = trace(settings, task, dtype, opset, choices=choices, every_layer=True)
    return traced, fold(traced.model, traced.parameters, traced.signature)


def _externalise(model: ir.Model, parameters: Sequence[Parameter]) -> None:
    """Give each parameter a place in a file that is yet to be written; mutates `model`."""
    for parameter in parameters:
        value = model.graph.initializers[parameter.name]
        value.const_value = ir.ExternalTensor(
            _PLACEHOLDER,
            0,
            0,
            ir.DataType(parameter.stored_dtype.onnx),
            shape=ir.Shape(parameter.stored_shape),
            name=parameter.name,
        )
