"""Checks of a swappable graph: its outputs without an adapter, and no state left behind.

    no adapter       the base graph's outputs, bit for bit
    a → b → base → a    the outputs of a and of the base do not change, bit for bit

A head that is an input is no constant, and ONNX Runtime does not pack it: its sums then come in
another order than in the base graph. Where bits differ for that, both graphs are compared without
packing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np

from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH, SWAPPABLE_GRAPH
from lora_export.core.reports.parity_report import ParityRow
from lora_export.exports.base_config import read_base_config
from lora_export.exports.pack_reading import read_pack
from lora_export.graph.spec import tasks
from lora_export.ondevice.judge.tolerances import worst_of
from lora_export.runtime.ort import OrtRunner
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import make_cases
from lora_export.verification.parity import GraphParity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.judge.golden_files import Case

__all__ = ["case_of", "judge_shared", "judge_swapping"]

_SHAPE: Final = (2, 12)


class SharedFigures(TypedDict, total=False):
    """The figures on a graph that adapters share; see `ParityRow`."""

    base_bit_equal: bool | None
    with_packed_weights: bool
    mixed_relative_l2: float | None


def judge_swapping(
    export_dir: Path, manifest: Manifest, packs: Mapping[str, GraphParity], *, seed: int
) -> GraphParity:
    """Return the verdict on the graph: the worst of its adapters', and of swapping itself.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        packs: The verdict on each adapter.
        seed: Seeds the inputs.
    """
    failures: list[str] = []
    adapters = {name: read_pack(export_dir, manifest, name) for name in packs}
    case = case_of(export_dir, manifest, seed, _SHAPE)
    equal, packed = True, True
    if case is not None:
        equal = _same_as_base(export_dir, manifest, case, prepack=True)
        if not equal:
            packed = False
            equal = _same_as_base(export_dir, manifest, case, prepack=False)
        if not equal:
            failures.append("without an adapter the outputs are not the base graph's bit for bit")
        if changed := _unstable(export_dir, manifest, case, adapters):
            failures.append(f"after swapping, the outputs of {', '.join(changed)} have changed")
    return judge_shared(
        packs,
        failures,
        compared=case is not None,
        good="the base bit for bit, swapping leaves no trace",
        own={"base_bit_equal": equal if case is not None else None, "with_packed_weights": packed},
    )


def judge_shared(
    adapters: Mapping[str, GraphParity],
    failures: Sequence[str],
    *,
    compared: bool,
    good: str,
    own: SharedFigures,
) -> GraphParity:
    """Return the verdict on a graph that adapters share: the worst of theirs and of its own.

    Args:
        adapters: The verdict on each adapter.
        failures: What is wrong with the graph itself.
        compared: Whether the graph itself could be run.
        good: The reason where nothing is wrong.
        own: The figures on the graph itself, for the report's row.
    """
    verdict = worst_of([each.verdict for each in adapters.values()])
    if not compared and verdict == "pass":
        verdict = "unverified"
    found = [f"{name} is {e.verdict}" for name, e in adapters.items() if e.verdict != "pass"]
    if failures:
        verdict = "fail"
    row = ParityRow(
        verdict=verdict,
        reason="; ".join([*failures] or found) or good,
        metrics=None,
        adapters={name: each.row for name, each in adapters.items()},
        **own,
    )
    return GraphParity(row, adapters=adapters)


def case_of(export_dir: Path, manifest: Manifest, seed: int, shape: tuple[int, int]) -> Case | None:
    """Return inputs of the base graph; None where it takes some that are not fed here."""
    feeding = feeding_of(export_dir, manifest.base_graph)
    if feeding.reason:
        return None
    return make_cases(
        read_base_config(export_dir),
        feeding.signature,
        seed=seed,
        left_padding=tasks.by_name(manifest.base.task).causal,
        shapes=feeding.shapes((shape,)),
    )[0]


def _same_as_base(export_dir: Path, manifest: Manifest, case: Case, *, prepack: bool) -> bool:
    found = []
    for name in (BASE_GRAPH, SWAPPABLE_GRAPH):
        path = resolve_inside(export_dir, manifest.graphs[name].onnx)
        with OrtRunner(path, prepack=prepack) as runner:
            found.append(runner.run(case.feeds))
    return _same(*found)


def _unstable(
    export_dir: Path, manifest: Manifest, case: Case, adapters: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return the adapters whose outputs differ when they run again after all others."""
    order: dict[str, Mapping[str, Any]] = {**adapters, BASE_GRAPH: {}}
    with OrtRunner(resolve_inside(export_dir, manifest.graphs[SWAPPABLE_GRAPH].onnx)) as runner:
        first = {name: runner.with_adapter(each).run(case.feeds) for name, each in order.items()}
        return [
            name
            for name in reversed(order)
            if not _same(first[name], runner.with_adapter(order[name]).run(case.feeds))
        ]


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
