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
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.graph_runner import GraphRunner
    from lora_export.ondevice.judge.golden_files import Case
    from lora_export.verification.parity import GraphParity

__all__ = ["judge_batched"]

_MOST: Final = 8
_LENGTH: Final = 12


def judge_batched(
    export_dir: Path, manifest: Manifest, rows: Mapping[str, GraphParity], *, seed: int
) -> GraphParity:
    """Return the verdict on the graph: the worst of its adapters', and of mixing rows.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        rows: The verdict on each adapter.
        seed: Seeds the inputs.
    """
    chosen = list(manifest.rows.items())[: _MOST - 1]
    record = manifest.graphs[BATCHED_GRAPH]
    if not record.missing:
        chosen.insert(0, (BASE_GRAPH, 0))
    case = case_of(export_dir, manifest, seed, (max(len(chosen), 1), _LENGTH)) if chosen else None
    failures: list[str] = []
    worst = None
    if case is not None:
        tolerance = tolerance_of(manifest.base.dtype)
        widths = {name: width_of(export_dir, manifest, row) for name, row in chosen}
        with (
            OrtRunner(resolve_inside(export_dir, record.onnx)) as batched,
            OrtRunner(resolve_inside(export_dir, manifest.base_graph.onnx)) as base,
        ):
            errors = list(_errors(batched, base, case, chosen, widths))
        worst = max((0.0, *(error for _, error in errors)))
        failures = [
            f"in a mixed batch {what} is off by {error:.1e} relative L2"
            for what, error in errors
            if not error <= tolerance
        ]
    return judge_shared(
        rows,
        failures,
        compared=case is not None,
        good="mixed rows are the rows run alone",
        own={"mixed_relative_l2": worst},
    )


def _errors(
    batched: GraphRunner,
    base: GraphRunner,
    case: Case,
    chosen: Sequence[tuple[str, int]],
    widths: Mapping[str, int | None],
) -> Iterator[tuple[str, float]]:
    """Yield how far a row of a mixed batch is from the same row alone; and row 0 from the base.

    Args:
        batched: The batched graph.
        base: The base's own graph.
        case: Inputs of a row for each of `chosen`.
        chosen: Names, and rows in the stacks.
        widths: How many of the logits each has; None for all.
    """
    output = batched.outputs[0]
    ids = np.array([row for _, row in chosen], np.int64)
    mixed = batched.run({**case.feeds, ADAPTER_IDS: ids})[output]
    for at, (name, _) in enumerate(chosen):
        own = {key: value[at : at + 1] for key, value in case.feeds.items()}
        found = mixed[at : at + 1, ..., : widths[name]]
        alone = batched.run({**own, ADAPTER_IDS: ids[at : at + 1]})[output]
        yield name, relative_l2([found], [alone[..., : widths[name]]])
        if name == BASE_GRAPH:
            expected = base.run(own)[base.outputs[0]]
            yield "base, against its own graph", relative_l2([found], [expected])
