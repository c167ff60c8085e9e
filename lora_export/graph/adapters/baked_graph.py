"""A swappable graph with one adapter fixed: the adapter's values are constants, not inputs.

    input that the adapter sets        an initializer that points at the adapter's value
    input that it does not set         an initializer with the graph's own default

What is left are the inputs of the base graph. Runtimes that know no adapters open it as they open
any graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.adapters.swappable_graph import LABELS_AXIS
from lora_export.graph.spec.external_values import place_outside
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.spec.template import Placement

__all__ = ["bake_adapter"]


def bake_adapter(
    onnx_bytes: bytes, placements: Mapping[str, Placement], dtypes: Mapping[str, int]
) -> bytes:
    """Return a swappable graph with an adapter's values as constants; the same input, same bytes.

    Args:
        onnx_bytes: The swappable graph.
        placements: Where each value of the adapter lies, by its input, with its shape.
        dtypes: The dtype of each value, as ONNX numbers them.

    Raises:
        ExportDirectoryError: The graph cannot be parsed, lacks one of the inputs, or reads another
            dtype.
    """
    model = parse_onnx(onnx_bytes)
    graph = model.graph
    defaults = {each.name: each for each in graph.initializer}
    inputs = [each for each in graph.input if each.name in defaults]
    unknown = set(placements) - {each.name for each in inputs}
    if unknown:
        msg = f"the graph has no optional input {min(unknown)!r}"
        raise ExportDirectoryError(msg, hint="Graph and adapter are not of one export.")
    labels = None
    for each in inputs:
        placement = placements.get(each.name)
        if placement is not None:
            _require_dtype(defaults[each.name], dtypes[each.name])
            place_outside(
                defaults[each.name],
                placement.location,
                placement.offset_bytes,
                placement.length_bytes,
            )
            if placement.shape is not None:
                defaults[each.name].dims[:] = placement.shape
        for axis, size in zip(
            each.type.tensor_type.shape.dim, defaults[each.name].dims, strict=True
        ):
            labels = size if axis.dim_param == LABELS_AXIS else labels
        graph.input.remove(each)
    if labels is not None:
        axis = graph.output[0].type.tensor_type.shape.dim[-1]
        axis.Clear()
        axis.dim_value = labels
    del graph.value_info[:]  # shapes with the ranks of any adapter
    baked: bytes = model.SerializeToString(deterministic=True)
    return baked


def _require_dtype(tensor: onnx.TensorProto, dtype: int) -> None:
    if tensor.data_type != dtype:
        found, wanted = (onnx.TensorProto.DataType.Name(each) for each in (dtype, tensor.data_type))
        msg = f"{tensor.name!r} of the adapter is {found}, the graph reads {wanted}"
        raise ExportDirectoryError(
            msg, hint="Make its pack again: lora-export add EXPORT --replace"
        )
