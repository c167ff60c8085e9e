"""Quantized exports read with other eyes than their writer's: NumPy and the manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

from tests.cli.exports import manifest_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Array",
    "dequantized",
    "exact_session",
    "fused_products",
    "load_values",
    "quantized_uses",
    "run_exact",
]

Array = np.ndarray[Any, Any]


def dequantized(export: Path, graph: str = "base") -> dict[str, Array]:
    """Return each parameter of a graph in the model's layout, float64: integer times scale."""
    manifest = manifest_of(export)
    held: dict[str, Array] = {}
    for file in manifest["graphs"][graph]["weights"]:
        held |= load_file(export / file)
    values: dict[str, Array] = {}
    for uses in manifest["parameters"].values():
        for use in uses:
            value = _value(use, held).astype(np.float64)
            value = value.T if "transpose" in use["transform"] else value
            for name in (use["initializer"], *use.get("aliases", ())):
                values[name] = value
    return values


def _value(use: dict[str, Any], held: dict[str, Array]) -> Array:
    name, form = use["initializer"], use.get("quantized")
    if form is None:
        return held[name]
    integers, scales = held[f"{name}.quantized"], held[form["scale"]].astype(np.float64)
    zeros = held[form["zero_point"]] if form.get("zero_point") else np.zeros(1, np.int8)
    if form["bits"] == 4:
        columns = scales.shape[-1]
        integers = _halves(integers).reshape(-1, columns)
        zeros = _halves(zeros).reshape(-1, columns) if form.get("zero_point") else zeros
    if form.get("zero_point"):
        zeros = np.repeat(zeros.astype(np.float64), form["block_size"], axis=0)
    integers = integers.astype(np.float64) - zeros
    if form["block_size"]:
        scales = np.repeat(scales, form["block_size"], axis=0)
    elif form["axis"] == 0:
        scales = scales[:, None]
    return integers * scales


def _halves(packed: Array) -> Array:
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int64)
    return np.where(halves > 7, halves - 16, halves)


def load_values(model: Any, values: dict[str, Array]) -> None:
    """Give a torch model, PEFT's layers around it or not, the values of an export's base."""
    import torch

    state = {
        name.replace("base_model.model.", "").replace(".base_layer.", "."): name
        for name in model.state_dict()
    }
    tensors = {
        state[name]: torch.tensor(np.ascontiguousarray(value), dtype=torch.float32)
        for name, value in values.items()
        if name in state
    }
    assert len(tensors) == len(values), sorted(set(values) - set(state))
    model.load_state_dict(tensors, strict=False)


def exact_session(path: Path, *, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a graph whose products of integers are computed in float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_exact(path: Path, feeds: dict[str, Array]) -> Array:
    """Run a graph in float32; what is not fed of a decoder's past has length 0."""
    session = exact_session(path)
    wanted = {
        node.name: feeds[node.name]
        if node.name in feeds
        else np.zeros((len(feeds["input_ids"]), node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
    }
    return np.asarray(session.run(None, wanted)[0])


def fused_products(path: Path, folder: Path) -> int:
    """Return how many products ONNX Runtime computes with the integers themselves."""
    import onnx

    saved = folder / f"{path.stem}.optimized.onnx"
    exact_session(path, optimized=saved)
    graph = onnx.load(saved, load_external_data=False).graph
    assert not any(node.op_type == "DequantizeLinear" for node in graph.node)
    return sum(node.op_type == "MatMulNBits" for node in graph.node)


def quantized_uses(export: Path) -> dict[str, dict[str, Any]]:
    """Return how each quantized parameter is stored, by its name."""
    return {
        use["initializer"]: use["quantized"]
        for uses in json.loads((export / "lora_export.json").read_text())["parameters"].values()
        for use in uses
        if "quantized" in use
    }
