"""Graphs run in ONNX Runtime, where their weight files lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["close", "empty_past", "run", "session"]


def session(root: Path, graph: bytes) -> onnxruntime.InferenceSession:
    """Open `graph`, whose weight files are named relative to `root`."""
    path = root / "graph-of-a-test.onnx"
    path.write_bytes(graph)
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    finally:
        path.unlink()


def run(opened: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    names = [each.name for each in opened.get_outputs()]
    return dict(zip(names, opened.run(None, dict(feeds)), strict=True))


def empty_past(
    opened: onnxruntime.InferenceSession, batch: int, heads: int, width: int, dtype: str = "float32"
) -> dict[str, Any]:
    """Return an empty past of a shape that the caller chooses."""
    names = [each.name for each in opened.get_inputs() if each.name.startswith("past_key_values.")]
    return {name: np.zeros((batch, heads, 0, width), dtype) for name in names}


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    return bool(np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected))
