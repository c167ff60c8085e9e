"""Checks of a batched graph: mixed rows equal rows run alone, and row 0 is the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH
from lora_export.exports.stacks import width_of
from lora_export.graph.adapters.batched_graph import ADAPTER_IDS
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.ondevice.judge.tolerances import tolerance_of
from lora_export.runtime.ort import OrtRunner
from lora_export.verification.swappable_check import case_of, judge_shared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.verification.parity import GraphParity

__all__ = ["judge_batched"]

_MOST: Final = 8
_LENGTH: Final = 12


def judge_batched(
    root: Path, manifest: Manifest, rows: Mapping[str, GraphParity], *, seed: int
) -> GraphParity:
    """Return the verdict on the graph: the worst of its adapters', and of mixing rows.

    Args:
        root: The export directory.
        manifest: Its manifest.
        rows: The verdict on each adapter.
        seed: Seeds the inputs.
    """
    chosen = list(manifest.rows.items())[: _MOST - 1]
    record = manifest.graphs[BATCHED_GRAPH]
    if not record.missing:
        chosen.insert(0, (BASE_GRAPH, 0))
    case = case_of(root, manifest, seed, (max(len(chosen), 1), _LENGTH)) if chosen else None
    failures: list[str] = []
    worst = None
    if case is not None:
        runner = OrtRunner(resolve_inside(root, record.onnx))
        ids = np.array([row for _, row in chosen], np.int64)
        mixed = runner.run({**case.feeds, ADAPTER_IDS: ids})[runner.outputs[0]]
        tolerance = tolerance_of(manifest.base.dtype)
        base = OrtRunner(resolve_inside(root, manifest.base_graph.onnx))
        worst = 0.0
        for at, (name, row) in enumerate(chosen):
            own = {key: value[at : at + 1] for key, value in case.feeds.items()}
            width = width_of(root, manifest, row)
            alone = runner.run({**own, ADAPTER_IDS: ids[at : at + 1]})[runner.outputs[0]]
            expected = [(name, alone[..., :width])]
            if name == BASE_GRAPH:
                expected.append(("base, against its own graph", base.run(own)[base.outputs[0]]))
            for what, wanted in expected:
                error = relative_l2([mixed[at : at + 1, ..., :width]], [wanted])
                worst = max(worst, error)
                if not error <= tolerance:
                    failures.append(f"in a mixed batch {what} is off by {error:.1e} relative L2")
    return judge_shared(
        rows,
        failures,
        compared=case is not None,
        good="mixed rows are the rows run alone",
        own={"mixed_relative_l2": worst},
    )
