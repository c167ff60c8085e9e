"""Batches of rows with adapters of their own, run by ONNX Runtime and by a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from lora_export.runtime import open_export
from tests.cli.exports import run_graph

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-classification"
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
LOWEST = np.finfo(np.float32).min


def feeds_of(rows: int, *, kind: str = "roberta", length: int = 7) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(3).integers(3, 200, (rows, length))
    mask = np.ones_like(ids)
    mask[::2, 5:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask}
    if kind == "bert":
        feeds["token_type_ids"] = np.zeros_like(ids)
    return feeds


def by_onnxruntime(export_dir: Path, feeds: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Run ``batched.onnx`` as any program would."""
    session = onnxruntime.InferenceSession(str(export_dir / "batched.onnx"))
    return np.asarray(session.run(None, {**feeds, "adapter_ids": np.array(ids, np.int64)})[0])


LABELS = {"mnli": 3, "sst2": 2, "five": 5, None: 3}


def assert_rows(export_dir: Path, expected: dict[Any, np.ndarray], names: list[str | None]) -> None:
    feeds = feeds_of(len(names))
    expected = {**expected, None: run_graph(export_dir, "base", feeds)}
    with open_export(export_dir) as session:
        found = session.run(feeds, adapter_ids=names)["logits"]
    for row, name in enumerate(names):
        width = LABELS[name]
        np.testing.assert_allclose(found[row, :width], expected[name][row], **CLOSE)
        assert (found[row, width:] == LOWEST).all()
