"""Did both sides compute the same thing? Run in the peers' environment; prints JSON.

Usage: python _compare.py graphs PEER.onnx OURS.onnx
       python _compare.py tensors MERGED_CHECKPOINT EXPORT ADAPTER_NAME
       python _compare.py inputs GRAPH.onnx
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from safetensors import safe_open

_IDS = 1000


def _outputs(path: str, feeds: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: feeds[name] for name in names})[0]


def compare_graphs(peer: str, ours: str) -> dict[str, float]:
    """Run two graphs on seeded inputs with padding; return their relative L2 difference."""
    ids = np.random.default_rng(0).integers(3, _IDS, (3, 24))
    mask = np.ones_like(ids)
    ids[1, 10:], mask[1, 10:] = 1, 0
    feeds = {"input_ids": ids, "attention_mask": mask}
    reference, found = _outputs(peer, feeds), _outputs(ours, feeds)
    return {
        "relative_l2": float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
        "max_abs": float(np.abs(found - reference).max()),
    }


def compare_tensors(merged: Path, export: Path, adapter: str) -> dict[str, float]:
    """Compare every merged tensor with the peers'; return the largest relative L2 difference."""
    manifest = json.loads((export / "lora_export.json").read_text("utf-8"))
    transposed = {
        use["initializer"]: "transpose" in use["transform"]
        for uses in manifest["parameters"].values()
        for use in uses
    }
    places: dict[str, Any] = {}
    for shard in merged.glob("*.safetensors"):
        reader = safe_open(shard, "numpy")
        places |= dict.fromkeys(reader.keys(), reader)
    worst, count = 0.0, 0
    with safe_open(export / f"weights/{adapter}.safetensors", "numpy") as ours:
        for name in ours.keys():  # noqa: SIM118  (not a dict)
            found = ours.get_tensor(name).astype(np.float32)
            found = found.T if transposed[name] else found
            reference = places[name].get_tensor(name).astype(np.float32)
            worst = max(worst, float(np.linalg.norm(found - reference) / np.linalg.norm(reference)))
            count += 1
    return {"largest_relative_l2": worst, "tensors": count}


def list_inputs(path: str) -> dict[str, list[str]]:
    """Return the names of a graph's inputs."""
    model = onnx.load(path, load_external_data=False)
    return {"inputs": [value.name for value in model.graph.input]}


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "graphs":
        result: dict[str, Any] = compare_graphs(*arguments)
    elif kind == "tensors":
        result = compare_tensors(Path(arguments[0]), Path(arguments[1]), arguments[2])
    else:
        result = list_inputs(*arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
