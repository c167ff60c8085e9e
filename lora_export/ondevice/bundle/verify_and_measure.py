"""The verification of a bundle on its device: parity with the golden outputs, latency.

Latency is the paired ratio of an adapter's graph over the base's, both on the same inputs, as
`lora_export.ondevice.judge.latency_row` measures it. A decoder with a cache has two: that of a
prefill, and that of a step behind it, fed what the prefill returned.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.bundle.tensor_values import read_values
from lora_export.ondevice.device_errors import (
    ExportDirectoryError,
    InputError,
    LoraExportError,
    UsageError,
)
from lora_export.ondevice.judge.decoding import (
    PAST,
    PRESENT,
    WRITE_INDICES,
    on_static_cache,
    with_buffers,
    without_cache,
)
from lora_export.ondevice.judge.golden_checks import check_graph
from lora_export.ondevice.judge.golden_files import read_arrays, read_golden
from lora_export.ondevice.judge.latency_row import TimingRow, latency_row, measure_pair
from lora_export.ondevice.judge.pair_runner import PairRunner
from lora_export.ondevice.judge.preset_runner import PresetRunner
from lora_export.ondevice.trt.swappable_inputs import padded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.ondevice.bundle.bundle_index import Index
    from lora_export.ondevice.bundle.runtimes import Runtime
    from lora_export.ondevice.graph_runner import GraphRunner
    from lora_export.ondevice.judge.golden_checks import CheckRow
    from lora_export.ondevice.judge.golden_files import Golden
    from lora_export.ondevice.judge.tolerances import Verdict

    Tell = Callable[[str], None]

__all__ = ["LatencyCheck", "Measurement", "Unmeasured", "choose", "measure", "verify"]

Array = npt.NDArray[Any]

BASE: Final = "base"
PREFILL: Final = "prefill"
STEP: Final = "step"
_NO_GATE: Final = "measured without TensorRT: it says nothing of the target"


class Measurement(TimingRow):
    """An adapter against the base, and the shape of the input."""

    input: list[int]


class Unmeasured(TypedDict):
    """An adapter that was not measured."""

    verdict: Verdict
    reason: str
    ratio: None


LatencyCheck = Measurement | Unmeasured


def choose(index: Index, names: Sequence[str]) -> tuple[str, ...]:
    """Return which of the bundle's checks are asked for; all without names.

    Raises:
        UsageError: The bundle has no such check.
    """
    known = tuple(sorted(index.contents.checks, key=lambda name: (name != BASE, name)))
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        msg = f"the bundle {index.name!r} has no {unknown!r}"
        raise UsageError(msg, hint=f"It has: {', '.join(known)}.")
    return tuple(names) or known


def verify(
    bundle_dir: Path, index: Index, runtime: Runtime, names: Sequence[str], tell: Tell
) -> dict[str, CheckRow]:
    """Compare graphs with their golden outputs; return the rows of a report, by name.

    Args:
        bundle_dir: The bundle, unpacked.
        index: Its index.
        runtime: What runs the graphs.
        names: What is compared: ``base``, or an adapter.
        tell: Told what happens.
    """
    return {name: _verified(bundle_dir, index, runtime, name, tell) for name in names}


def _verified(bundle_dir: Path, index: Index, runtime: Runtime, name: str, tell: Tell) -> CheckRow:
    check = index.contents.checks[name]
    if check.golden is None:
        reason = check.reason or "the bundle has no golden outputs of it"
        return {"verdict": "unverified", "reason": reason, "metrics": None}
    tell(f"parity of {name}")
    golden = _whole(read_golden(bundle_dir / check.golden), check.buffers)
    with _opened(bundle_dir, index, runtime, name) as graph:
        try:
            return check_graph(graph, golden, check.reading, dtype=index.contents.dtype)[1]
        except (KeyError, IndexError, ValueError, UsageError, ExportDirectoryError) as error:
            why = error.message if isinstance(error, LoraExportError) else str(error)
            msg = f"{check.golden!r} and the graph {check.graph!r} do not fit each other: {why}"
            raise InputError(msg, hint="Pack the bundle again.") from error


def _whole(golden: Golden, buffers: Mapping[str, Sequence[Any]]) -> Golden:
    """Return golden inputs with the buffers of a static cache, which their file leaves out."""
    cases = [replace(each, feeds=with_buffers(each.feeds, buffers)) for each in golden.cases]
    return replace(golden, cases=cases)


@contextlib.contextmanager
def _opened(bundle_dir: Path, index: Index, runtime: Runtime, name: str) -> Iterator[GraphRunner]:
    """Yield the graph of a check, with what it is fed beside its inputs; close it at the end."""
    check = index.contents.checks[name]
    with runtime.open(check.graph, check.refit) as graph:
        if check.encoder is not None:
            empty = {each: (row[0], row[1], row[2]) for each, row in check.empty.items()}
            with runtime.open(check.encoder) as encoder:
                yield PairRunner(encoder, graph, empty)
            return
        values: dict[str, Array] = {}
        if check.pack is not None:
            rank = runtime.smallest_rank(check.graph)
            values = padded(read_values(bundle_dir / check.pack), rank)
        yield PresetRunner(graph, values, row=check.row, width=check.width)


def measure(
    bundle_dir: Path,
    index: Index,
    runtime: Runtime,
    names: Sequence[str],
    tell: Tell,
    *,
    rounds: int | None = None,
    max_ratio: float | None = None,
) -> dict[str, LatencyCheck]:
    """Measure adapters against the base; return the rows of a report, by name.

    Args:
        bundle_dir: The bundle, unpacked.
        index: Its index.
        runtime: What runs the graphs.
        names: What is measured; the base is what it is measured against.
        tell: Told what happens.
        rounds: Interleaved rounds; the bundle's own number by default.
        max_ratio: The gate; the bundle's own by default, and none where TensorRT does not run.
    """
    plan = index.contents.latency
    wanted = [name for name in names if name != BASE]
    if plan.feeds is None or not wanted:
        reason = plan.reason or "there are no adapters to measure"
        return {
            name: Unmeasured(verdict="unverified", reason=reason, ratio=None) for name in wanted
        }
    buffers = index.contents.checks[BASE].buffers
    feeds = with_buffers(read_arrays(bundle_dir / plan.feeds), buffers)
    rows: dict[str, LatencyCheck] = {}
    with _opened(bundle_dir, index, runtime, BASE) as base:
        stages = _stages(base, feeds)
        for name in wanted:
            tell(f"latency of {name}")
            with _opened(bundle_dir, index, runtime, name) as adapter:
                for stage, values in stages.items():
                    rows[name if stage is None else f"{name}, {stage}"] = _row(
                        (base, adapter),
                        values,
                        rounds=rounds or plan.rounds,
                        limit=plan.max_ratio if max_ratio is None else max_ratio,
                        gates=runtime.gates or max_ratio is not None,
                    )
    return rows


def _stages(base: GraphRunner, feeds: dict[str, Array]) -> dict[str | None, dict[str, Array]]:
    """Return the inputs of each thing that is measured: one, or a prefill and a step behind it."""
    past = [name for name in feeds if name.startswith(PAST)]
    if not past:
        return {None: feeds}
    outputs = base.run(feeds)
    step: dict[str, Array] = {}
    for name, values in without_cache(feeds).items():
        if name == "attention_mask":
            step[name] = np.concatenate([values, np.ones_like(values[:, :1])], axis=1)
        elif name == "position_ids":
            step[name] = values[:, -1:] + 1
        elif name == "input_ids":
            step[name] = values[:, -1:]
        else:
            msg = f"the step of a decoder that reads {name!r} is not known"
            raise InputError(msg, hint="Pack the bundle again.")
    if WRITE_INDICES in feeds:
        written, room = feeds["input_ids"].shape[1], feeds["attention_mask"].shape[1]
        step = on_static_cache(step, written=written, length=room)
    kept = {name: outputs[PRESENT + name[len(PAST) :]] for name in past}
    return {PREFILL: feeds, STEP: {**step, **kept}}


def _row(
    graphs: tuple[GraphRunner, GraphRunner],
    feeds: Mapping[str, Array],
    *,
    rounds: int,
    limit: float,
    gates: bool,
) -> Measurement:
    base, adapter = graphs
    base_ms, adapter_ms = measure_pair(
        lambda: base.run(feeds), lambda: adapter.run(feeds), rounds=rounds, seed=0
    )
    row = latency_row(base_ms, adapter_ms, max_ratio=limit, seed=0)
    if not gates:
        row["verdict"], row["reason"] = "unverified", _NO_GATE
    ids = feeds.get("input_ids")
    shape = list(next(iter(feeds.values())).shape if ids is None else ids.shape)
    return {**row, "input": shape}
