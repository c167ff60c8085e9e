"""A graph checked against its golden outputs, as a row of a report.

A graph is anything with ``run(feeds) -> outputs``: a session of ONNX Runtime, an engine of
TensorRT. What it is fed beside the golden inputs (an adapter, a row's number) is merged in by
`Bound`; a decoder runs in pieces, a prefill and single steps; an encoder and a decoder run as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from lora_export.ondevice.judge.decoding import PAST, PRESENT, run_in_pieces
from lora_export.ondevice.judge.golden_files import Case, Golden, valid_rows
from lora_export.ondevice.judge.metrics import compare
from lora_export.ondevice.judge.tolerances import EFFECT_SHARE, Verdict, judge, tolerance_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.ondevice.judge.decoding import Graph
    from lora_export.ondevice.judge.metrics import MetricsTable

__all__ = [
    "DECODER_IDS",
    "Bound",
    "CheckRow",
    "Reading",
    "TwoGraphs",
    "check_graph",
    "joined",
    "judge_outputs",
    "read_output",
]

Array = npt.NDArray[Any]

DECODER_IDS: Final = "decoder_input_ids"
"""What the decoder reads where an encoder has inputs of its own."""

_MASK: Final = "attention_mask"


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
    """How the outputs of a graph are read.

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


@dataclass(frozen=True)
class Bound:
    """A graph with inputs that are the same for every run: an adapter's values, a row's number.

    Attributes:
        graph: The graph.
        values: Inputs for every run.
        row: The row of a batched graph that every row of a batch has; None for other graphs.
        width: How many of the logits an adapter's row has; None for all.
    """

    graph: Graph
    values: Mapping[str, Array] = field(default_factory=dict, repr=False)
    row: int | None = None
    width: int | None = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once."""
        bound = {**feeds, **self.values}
        if self.row is not None:
            rows = len(next(iter(feeds.values())))  # of texts, of images
            bound["adapter_ids"] = np.full(rows, self.row, np.int64)
        found = self.graph.run(bound)
        if self.width is not None:
            found = {name: each[..., : self.width] for name, each in found.items()}
        return found


@dataclass(frozen=True)
class TwoGraphs:
    """An encoder and a decoder as one graph.

    Attributes:
        encoder: Returns ``present.{i}.encoder.*``, which the decoder reads in every run.
        decoder: Reads and returns ``{i}.decoder.*``, its cache.
        empty: Heads, width and dtype of each input of the decoder's own cache.
    """

    encoder: Graph
    decoder: Graph
    empty: Mapping[str, tuple[int, int, str]]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Encode, then decode ``decoder_input_ids`` in pieces; return the logits."""
        seen = self.encoder.run(feeds)
        fixed = {
            PAST + name[len(PRESENT) :]: each
            for name, each in seen.items()
            if name.startswith(PRESENT)
        }
        if _MASK in feeds:
            fixed[f"encoder_{_MASK}"] = feeds[_MASK]
        ids = feeds[DECODER_IDS]
        past = {
            name: np.zeros((len(ids), heads, 0, width), dtype)
            for name, (heads, width, dtype) in self.empty.items()
        }
        decoder = Bound(self.decoder, fixed)
        return {"logits": run_in_pieces(decoder, {"input_ids": ids, **past}, "logits")}


def joined(fields: Mapping[str, Array], names: Sequence[str]) -> Array:
    """Return one array of the outputs called `names`: several are stacked on a last axis."""
    if len(names) == 1:
        return fields[names[0]]
    return np.stack([fields[name] for name in names], axis=-1)


def read_output(
    graph: Graph, feeds: Mapping[str, Array], reading: Reading, *, switch: int | None = None
) -> Array:
    """Return what a graph computes of `feeds`, as the reference gives it.

    Args:
        graph: The graph.
        feeds: Its inputs.
        reading: How its outputs are read.
        switch: See `lora_export.ondevice.judge.decoding.run_in_pieces`.
    """
    if any(name.startswith(PAST) for name in feeds):
        return run_in_pieces(graph, feeds, reading.outputs[0], last=reading.last, switch=switch)
    return joined(graph.run(feeds), reading.outputs)


def check_graph(
    graph: Graph, golden: Golden, reading: Reading, *, dtype: str
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
