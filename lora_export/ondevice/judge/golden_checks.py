"""A graph checked against its golden outputs, as a row of a report.

What a graph is given beside the golden inputs (an adapter, a row's number) a `PresetRunner` adds. A
decoder runs in pieces, a prefill and single steps; an encoder and a decoder run as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.judge.decoding import PAST, run_in_pieces
from lora_export.ondevice.judge.golden_files import Case, Golden, valid_rows
from lora_export.ondevice.judge.metrics import compare
from lora_export.ondevice.judge.tolerances import EFFECT_SHARE, Verdict, judge, tolerance_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.ondevice.graph_runner import GraphRunner
    from lora_export.ondevice.judge.metrics import MetricsTable

__all__ = [
    "CheckRow",
    "Reading",
    "check_graph",
    "judge_outputs",
    "read_output",
    "stack_outputs",
]

Array = npt.NDArray[Any]


class _Judged(TypedDict):
    verdict: Verdict
    reason: str
    metrics: MetricsTable | None


class CheckRow(_Judged, total=False):
    """The row of a report on outputs that were compared.

    A row with ``metrics: None`` has no other keys: the outputs could not be compared.
    """

    dtype: str
    tolerance: float
    effect: float | None
    effect_share_limit: float
    inputs: list[list[int]]


@dataclass(frozen=True)
class Reading:
    """The way in which the outputs of a graph are read.

    Attributes:
        outputs: Their names; several are stacked on a last axis.
        per_token: Whether there is a row for each token.
        choices: Whether a row is a choice among its columns.
        last: Whether a decoder returns the logits of the last position only.
    """

    outputs: tuple[str, ...]
    per_token: bool
    choices: bool
    last: bool


def stack_outputs(fields: Mapping[str, Array], names: Sequence[str]) -> Array:
    """Return one array of the outputs called `names`: several are stacked on a last axis."""
    if len(names) == 1:
        return fields[names[0]]
    return np.stack([fields[name] for name in names], axis=-1)


def read_output(
    graph: GraphRunner, feeds: Mapping[str, Array], reading: Reading, *, switch: int | None = None
) -> Array:
    """Return the outputs of a graph for `feeds`, in the form of the reference's.

    Args:
        graph: The graph.
        feeds: Its inputs.
        reading: How its outputs are read.
        switch: See `lora_export.ondevice.judge.decoding.run_in_pieces`.
    """
    if any(name.startswith(PAST) for name in feeds):
        return run_in_pieces(graph, feeds, reading.outputs[0], last=reading.last, switch=switch)
    return stack_outputs(graph.run(feeds), reading.outputs)


def check_graph(
    graph: GraphRunner, golden: Golden, reading: Reading, *, dtype: str
) -> tuple[Verdict, CheckRow]:
    """Compare a graph with its golden outputs; return the verdict and the report's row.

    Args:
        graph: The graph, or two as one.
        golden: The inputs, and what the reference makes of them.
        reading: How its outputs are read.
        dtype: The dtype of its weights; decides the tolerance.
    """
    actual = [
        read_output(graph, case.feeds, reading, switch=golden.switch) for case in golden.cases
    ]
    for ours, theirs in zip(actual, golden.expected, strict=True):
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)}, the golden one {list(theirs.shape)}"
            reason = f"the output {reading.outputs[0]!r} is {shapes}"
            return "fail", {"verdict": "fail", "reason": reason, "metrics": None}
    return judge_outputs(
        golden.cases, actual, golden.expected,
        per_token=reading.per_token, choices=reading.choices, dtype=dtype, effect=golden.effect,
    )  # fmt: skip


def judge_outputs(
    cases: Sequence[Case],
    actual: Sequence[Array],
    expected: Sequence[Array],
    *,
    per_token: bool,
    choices: bool,
    dtype: str,
    effect: float | None,
    allow_no_effect: bool = False,
) -> tuple[Verdict, CheckRow]:
    """Return the verdict on outputs, and the row that a report gets.

    Args:
        cases: The inputs; their masks say what counts.
        actual: What the graph made of each.
        expected: What the reference made of each.
        per_token: Whether there is a row for each token.
        choices: Whether a row is a choice among its columns.
        dtype: The dtype of the graph's weights.
        effect: What the adapter changes, relative L2; None for the base.
        allow_no_effect: Whether an adapter may change nothing.
    """
    tolerance = tolerance_of(dtype)
    rows = [
        [
            valid_rows(each, case, per_token=per_token)
            for each, case in zip(side, cases, strict=True)
        ]
        for side in (actual, expected)
    ]
    metrics = compare(rows[0], rows[1], choices=choices, tolerance=tolerance)
    verdict, reason = judge(metrics, dtype=dtype, effect=effect, allow_no_effect=allow_no_effect)
    return verdict, {
        "verdict": verdict,
        "reason": reason,
        "dtype": dtype,
        "tolerance": tolerance,
        "effect": effect,
        "effect_share_limit": EFFECT_SHARE,
        "metrics": metrics.as_json(),
        "inputs": [list(case.mask.shape) for case in cases],
    }
