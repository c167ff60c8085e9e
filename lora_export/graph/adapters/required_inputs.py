"""A graph whose optional inputs are required, as TensorRT's parser needs them.

The parser drops graph inputs that are initializers too (onnx-tensorrt, ``ModelImporter``): a
swappable graph handed over as it is becomes an engine that computes the base, whatever it is fed.
Without those initializers the inputs stay; the base is then their defaults, given explicitly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import checker, numpy_helper

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.external_data import external_problem
from lora_export.ondevice.trt.swappable_inputs import padded

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import onnx

__all__ = ["base_values", "without_defaults"]

_UNREADABLE: Final = (OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError)


def without_defaults(onnx_bytes: bytes) -> bytes:
    """Return the graph without the initializers that are inputs too; the same input, same bytes.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
    """
    model = parse_onnx(onnx_bytes)
    inputs = {each.name for each in model.graph.input}
    kept = [each for each in model.graph.initializer if each.name not in inputs]
    if len(kept) == len(model.graph.initializer):
        return onnx_bytes
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def base_values(onnx_bytes: bytes, folder: Path, *, rank: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Return the value of each optional input with which the graph computes the base.

    A and B are zeros of the given rank instead of empty, because a profile begins at rank 1; all
    others have their defaults.

    Args:
        onnx_bytes: The graph with its defaults.
        folder: Where its weight files lie.
        rank: The rank of A and B.

    Raises:
        ExportDirectoryError: The graph or a weight file is damaged or missing.
    """
    graph = parse_onnx(onnx_bytes).graph
    inputs = {each.name for each in graph.input}
    found = {each.name: _value(each, folder) for each in graph.initializer if each.name in inputs}
    return padded(found, rank)


def _value(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[Any]:
    for entry in tensor.external_data:
        if entry.key == "location" and (problem := external_problem(folder, entry.value)):
            msg = f"the value of {tensor.name!r} is in {entry.value!r}, which {problem}"
            raise ExportDirectoryError(msg, hint="The export is damaged; export again.")
    try:
        return np.asarray(numpy_helper.to_array(tensor, str(folder)))
    except (*_UNREADABLE, checker.ValidationError) as error:
        msg = f"the value of {tensor.name!r} cannot be read: {error}"
        raise ExportDirectoryError(msg, hint="The export is damaged; export again.") from error
