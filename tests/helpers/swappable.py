"""A batched graph made by hand of an export's base graph: ``y = x W + (x A[id]) B[id]``."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lora_export.adapters.formats.packed import pack
from lora_export.adapters.formats.peft import read_peft
from lora_export.base.dtypes import by_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["add_batched", "packed"]


def packed(adapter: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Return a PEFT adapter's tensors by the names of a swappable graph's inputs."""
    tensors = pack(read_peft(adapter, name="a", source="a"), by_name("float32"))
    return {name: each.values for name, each in tensors.items()}


def add_batched(export: Path, modules: tuple[str, ...], packs: list[Mapping[str, Any]]) -> Path:
    """Give an export a batched graph of the linear layers called `modules`; row 0 is the base."""
    model = onnx.load(export / "base.onnx", load_external_data=False)
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("adapter_ids", TensorProto.INT64, ["batch"]))
    rank = max(each.shape[1] for one in packs for n, each in one.items() if ".lora_A." in n)
    for node, module, shape in _linears(graph, modules):
        x, w = node.input
        y = node.output[0]
        a = np.zeros((len(packs) + 1, shape[0], rank), np.float32)
        b = np.zeros((len(packs) + 1, rank, shape[1]), np.float32)
        for row, one in enumerate(packs, 1):
            own = one[f"{module}.lora_A.weight"]
            a[row, :, : own.shape[1]] = own
            b[row, : own.shape[1]] = one[f"{module}.lora_B.weight"]
        graph.initializer.append(numpy_helper.from_array(a, module + ".stack_A"))
        graph.initializer.append(numpy_helper.from_array(b, module + ".stack_B"))
        _replace(graph, node, [
            helper.make_node("MatMul", [x, w], [y + "/w"]),
            helper.make_node("Gather", [module + ".stack_A", "adapter_ids"], [y + "/A"]),
            helper.make_node("Gather", [module + ".stack_B", "adapter_ids"], [y + "/B"]),
            helper.make_node("MatMul", [x, y + "/A"], [y + "/a"]),
            helper.make_node("MatMul", [y + "/a", y + "/B"], [y + "/b"]),
            helper.make_node("Add", [y + "/w", y + "/b"], [y]),
        ])  # fmt: skip
    _record(export, "batched", model)
    return export


def _linears(graph: Any, modules: tuple[str, ...]) -> list[tuple[Any, str, list[int]]]:
    shapes = {each.name: list(each.dims) for each in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in shapes:
            module = node.input[1].removesuffix(".weight")
            if module.rpartition(".")[2] in modules:
                found.append((node, module, shapes[node.input[1]]))
    assert found
    return found


def _replace(graph: Any, node: Any, nodes: list[Any]) -> None:
    where = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, each in enumerate(nodes):
        graph.node.insert(where + offset, each)


def _record(export: Path, mode: str, model: Any) -> None:
    path = export / f"{mode}.onnx"
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((export / "lora_export.json").read_text())
    base = manifest["graphs"]["base"]
    manifest["graphs"][mode] = {**base, "mode": mode, "onnx": path.name, "sha256": _sha256(path)}
    manifest["files"][path.name] = _sha256(path)
    (export / "lora_export.json").write_text(json.dumps(manifest))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
