"""A graph whose symbolic axes have other names.

transformers.js makes an empty past of the shape that the graph declares, in which it knows
``batch_size`` and takes every other name for 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.graph.foreign.rewire import all_graphs
from lora_export.graph.spec.onnx_file import parse_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["with_axis_names"]


def with_axis_names(onnx_bytes: bytes, names: Mapping[str, str]) -> bytes:
    """Return a graph with other names of axes; the same input, same bytes.

    Args:
        onnx_bytes: The graph.
        names: The new name of an axis by the one that it has.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
    """
    model = parse_onnx(onnx_bytes)
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for axis in value.type.tensor_type.shape.dim:
                if axis.HasField("dim_param"):
                    axis.dim_param = names.get(axis.dim_param, axis.dim_param)
    written: bytes = model.SerializeToString(deterministic=True)
    return written
