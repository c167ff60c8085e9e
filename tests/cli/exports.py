"""Reading an export directory with other eyes than its writer's."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Array",
    "assert_intact",
    "manifest_of",
    "peft_model",
    "report",
    "run_graph",
    "run_torch",
    "scale_tensor",
]

Array = np.ndarray[Any, Any]


def manifest_of(export: Path) -> dict[str, Any]:
    """Return the manifest as plain JSON."""
    table: dict[str, Any] = json.loads((export / "lora_export.json").read_text())
    return table


def report(export: Path, name: str) -> dict[str, Any]:
    """Return one of the reports."""
    table: dict[str, Any] = json.loads((export / "reports" / f"{name}.json").read_text())
    return table


def assert_intact(export: Path) -> None:
    """Require that every file is hashed in the manifest, and that every hash is right."""
    there = {
        path.relative_to(export).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in export.rglob("*")
        if path.is_file() and path.name != "lora_export.json" and not path.name.endswith(".lock")
    }
    manifest = manifest_of(export)
    assert there == manifest["files"]
    for graph in manifest["graphs"].values():
        assert there[graph["onnx"]] == graph["sha256"]
        assert set(graph["weights"]) <= set(there)
    assert set(manifest["graphs"]) == {"base", *manifest["adapters"]}


def run_graph(export: Path, name: str, feeds: dict[str, Array]) -> Array:
    """Run one graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(export / f"{name}.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    wanted = {
        node.name: feeds[node.name]
        if node.name in feeds
        else np.zeros((len(feeds["input_ids"]), node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()  # a decoder's past of length 0
    }
    return np.asarray(session.run(None, wanted)[0])


def peft_model(base: Path, adapter: Path, task: str, *, labels_count: int | None = None) -> Any:
    """Return the adapter unmerged on its base, in float32, through PEFT."""
    import peft

    from tests.helpers.models import load_tiny

    model = load_tiny(base, task, labels_count=labels_count, dtype="float32")
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def run_torch(model: Any, feeds: dict[str, Array], output: str = "logits") -> Array:
    """Run a torch model."""
    import torch

    with torch.inference_mode():
        result = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return np.asarray(getattr(result, output).float().numpy())


def scale_tensor(export: Path, file: str, factor: float, *, containing: str = "") -> str:
    """Multiply a float32 tensor of a weight file, and correct the hash: a plausible wrong merge."""
    path = export / file
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name: str = next(n for n in sorted(header) if n != "__metadata__" and containing in n)
    start, end = (8 + length + offset for offset in header[name]["data_offsets"])
    assert header[name]["dtype"] == "F32"
    values = np.frombuffer(bytes(data[start:end]), np.float32) * np.float32(factor)
    data[start:end] = values.tobytes()
    path.write_bytes(data)
    manifest = manifest_of(export)
    manifest["files"][file] = hashlib.sha256(data).hexdigest()
    (export / "lora_export.json").write_text(json.dumps(manifest))
    return name
