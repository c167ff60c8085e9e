"""ONNX files as other exporters write them: tiny ones by hand, and torch's two exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lora_export.core.dtypes import DTYPES
from lora_export.core.tensors import MemoryTensor
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.tensors import Tensor

__all__ = ["export_tiny", "initializer", "save_graph", "tensors_of"]


def tensors_of(values: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return arrays as the tensors of a checkpoint."""
    return {
        name: MemoryTensor(name, DTYPES[str(value.dtype)], value) for name, value in values.items()
    }


def initializer(name: str, values: np.ndarray) -> TensorProto:
    """Return an initializer that holds its bytes."""
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto],
    *,
    width: int,
    external: bool = False,
    inputs: Sequence[onnx.ValueInfoProto] = (),
) -> Path:
    """Save a graph from ``x`` ``[rows, width]`` to ``y``; return its path."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "main", [x, *inputs], [y], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    extra = {"location": f"{path.name}.data", "size_threshold": 0} if external else {}
    onnx.save_model(model, path, save_as_external_data=external, **extra)
    return path


def export_tiny(
    base: Path,
    path: Path,
    task: str,
    *,
    dynamo: bool,
    dtype: str = "float32",
    fixed: bool = False,
    folded: bool = True,
) -> Path:
    """Export a tiny encoder with one of torch's own exporters, as a user would; return `path`."""
    import torch

    model = load_tiny(base, task, labels_count=3, dtype=dtype)
    model.config.return_dict = False
    ids = torch.ones(2, 8, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    axes: dict[str, Any] = {} if folded else {"do_constant_folding": False}
    if dynamo and not fixed:
        free = torch.export.Dim.DYNAMIC
        axes["dynamic_shapes"] = {name: {0: free, 1: free} for name in inputs}
    elif not fixed:
        names = {0: "batch", 1: "sequence"}
        axes["dynamic_axes"] = {**dict.fromkeys(inputs, names), "logits": {0: "batch"}}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (), str(path), kwargs=inputs, input_names=list(inputs),
                output_names=["logits"], dynamo=dynamo, verbose=False, **axes,
            )  # fmt: skip
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return path
