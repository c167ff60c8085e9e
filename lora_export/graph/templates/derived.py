"""Templates of further opsets and of bfloat16, made from one that is stored.

Opsets 18 to 22 have the same operators for these graphs, and 23 to 25; bfloat16 is in a graph where
float16 was, and constants are rounded to it. Which of these a template may be made into says its
row of the index (``derived``): `tools.templates.derivations` writes them there once the
instance was, byte by byte, the graph that is traced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import AttributeProto, numpy_helper

from lora_export.core.dtypes import by_name
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.templates.matching import NoTemplateError
from lora_export.graph.templates.numbers import is_outside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from lora_export.graph.templates.opened import Opened

__all__ = ["derive"]

_HALF: Final = "float16"
_WIDE: Final = "bfloat16"
_HALF_LEAST: Final = -65504.0
_WIDE_LEAST: Final = -(2.0 - 2.0**-7) * 2.0**127


def derive(opened: Opened, *, dtype: str, opset: int) -> Opened:
    """Return `opened` for another dtype and opset; itself, where both are its own.

    Raises:
        NoTemplateError: It cannot be made into one of that dtype.
    """
    table = opened.table
    if (dtype, opset) == (table["dtype"], table["opset"]):
        return opened
    graphs = {}
    for name, data in opened.graphs.items():
        model = parse_onnx(data)
        for each in model.opset_import:
            if each.domain in {"", "ai.onnx"}:
                each.version = opset
        if dtype != table["dtype"]:
            _require_wide(table["dtype"], dtype)
            _widen(model)
        graphs[name] = model.SerializeToString(deterministic=True)
    parts = {
        name: {**part, "parameters": [_parameter(row, dtype) for row in part["parameters"]]}
        for name, part in table["graphs"].items()
    }
    return replace(
        opened, table={**table, "dtype": dtype, "opset": opset, "graphs": parts}, graphs=graphs
    )


def _require_wide(own: str, dtype: str) -> None:
    if (own, dtype) != (_HALF, _WIDE):
        msg = f"dtype {dtype!r}"
        raise NoTemplateError(msg)


def _parameter(row: Mapping[str, Any], dtype: str) -> Mapping[str, Any]:
    return {**row, "dtype": dtype} if row["dtype"] == _HALF else row


def _widen(model: ModelProto) -> None:
    """Let bfloat16 be where float16 was; mutates `model`."""
    half, wide = by_name(_HALF).onnx, by_name(_WIDE).onnx
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = wide
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type in {AttributeProto.GRAPH, AttributeProto.TENSOR}:
                msg = f"{node.op_type} in {_WIDE}"
                raise NoTemplateError(msg)
            if attribute.name == "to" and attribute.i == half:
                attribute.i = wide
    for tensor in model.graph.initializer:
        if tensor.data_type != half:
            continue
        if is_outside(tensor):
            tensor.data_type = wide
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        values[values == _HALF_LEAST] = _WIDE_LEAST
        tensor.CopyFrom(numpy_helper.from_array(values.astype(by_name(_WIDE).numpy), tensor.name))
