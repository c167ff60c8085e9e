"""Parity: every graph of an export against the unmerged adapter, or against its golden outputs.

    reference (torch, PEFT)  →  expected outputs, effect of the adapter, predictions on a data set
    graph (ONNX Runtime)     →  outputs on the same inputs
    metrics + tolerance      →  verdict, reports/parity.json, golden/<graph>.npz

The reference is closed before the graph is opened, and what it needs is estimated first: a model
that does not fit stays ``unverified`` and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_export.core.reports.parity_report import EncoderRow, ParityRow, unverified_row
from lora_export.ondevice.judge.golden_checks import judge_outputs
from lora_export.ondevice.judge.golden_files import Case, Golden
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.ondevice.judge.tolerances import tolerance_of
from lora_export.verification.datasets.dataset import Dataset, predict, score
from lora_export.verification.graph_model import PairModel, open_model
from lora_export.verification.greedy import compare_greedy
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import GOLDEN_CASES, with_buffers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.core.reports.parity_report import DatasetRow, DifferingExample, GreedyRow
    from lora_export.core.reports.quantization_report import QuantizationRow
    from lora_export.graph.spec.tasks import Task
    from lora_export.ondevice.judge.golden_checks import CheckRow
    from lora_export.ondevice.judge.tolerances import Verdict
    from lora_export.runtime.ort import OrtRunner
    from lora_export.verification.comparison import Comparison
    from lora_export.verification.expected import Expected
    from lora_export.verification.graph_model import GraphModel

__all__ = [
    "GraphParity",
    "against_golden",
    "against_reference",
    "judge_graph",
    "unverified",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GraphParity:
    """The verdict on one graph.

    Attributes:
        row: The graph's row in ``reports/parity.json``.
        golden: What a device needs to repeat the comparison; None where nothing was computed.
        adapters: Of a swappable graph: the same for each adapter.
        differing: Every example of the data set on which graph and reference differ; the row holds
            the first of them.
        quantization: The graph's row in ``reports/quantization.json``; None where nothing is
            quantized, or it was not measured.
    """

    row: ParityRow
    golden: Golden | None = field(default=None, repr=False)
    adapters: Mapping[str, GraphParity] = field(default_factory=dict, repr=False)
    differing: Sequence[DifferingExample] = field(default=(), repr=False)
    quantization: QuantizationRow | None = field(default=None, repr=False)

    @property
    def verdict(self) -> Verdict:
        """The verdict of the row."""
        return self.row.verdict


def against_reference(
    comparison: Comparison, *, dataset: Dataset | None, allow_no_effect: bool
) -> GraphParity:
    """Compare a graph with the unmerged adapter in torch.

    Args:
        comparison: The graph and its inputs.
        dataset: Examples whose predictions are compared too.
        allow_no_effect: Whether an adapter may change nothing.
    """
    has_adapter = comparison.choice.adapter is not None
    expected = comparison.run_reference(
        comparison.open_reference(), dataset, has_adapter=has_adapter
    )
    against = "PEFT, unmerged, float32" if has_adapter else "transformers, float32"
    graph = comparison.open_graph(exact=False)
    return judge_graph(
        comparison,
        graph,
        expected,
        against=against,
        dataset=dataset,
        allow_no_effect=allow_no_effect,
    )


def judge_graph(
    comparison: Comparison,
    graph: GraphModel | PairModel,
    expected: Expected,
    *,
    against: str,
    dataset: Dataset | None = None,
    allow_no_effect: bool = False,
) -> GraphParity:
    """Compare a graph with what a reference gave.

    Args:
        comparison: The graph and its inputs.
        graph: The graph, open.
        expected: What the reference gave.
        against: What the reference is, for the report.
        dataset: Examples whose predictions are compared too.
        allow_no_effect: Whether an adapter may change nothing.
    """
    task, cases = comparison.choice.task, comparison.cases
    actual = [graph.run(case.feeds) for case in cases]
    if different := _other_shape(comparison, actual, expected.outputs):
        return unverified(different)
    judged = judge_outputs(
        cases, actual, expected.outputs,
        per_token=task.per_token, choices=task.classifies, dtype=comparison.choice.dtype,
        effect=expected.effect, allow_no_effect=allow_no_effect,
    )  # fmt: skip
    row = _row(judged, against)
    tolerance = tolerance_of(comparison.choice.dtype)
    differing: Sequence[DifferingExample] = ()
    if dataset is not None and expected.answers is not None:
        scored, differing = score(
            dataset, predict(dataset, graph), expected.answers, expected.base_answers,
            tolerance=tolerance, seed=comparison.seed,
        )  # fmt: skip
        row = _with_dataset(row, scored)
    if isinstance(graph, PairModel):
        row = _with_encoder(row, graph, cases, expected.hidden, tolerance)
    if expected.greedy is not None:
        decoder = graph.decoder(expected.greedy.case.feeds)
        greedy = compare_greedy(
            decoder, expected.greedy, tolerance=tolerance, switch=comparison.switch
        )
        row = _with_greedy(row, greedy)
    kept = slice(0, GOLDEN_CASES)
    golden = Golden(cases[kept], expected.outputs[kept], expected.effect, comparison.switch)
    return GraphParity(row, golden, differing=differing)


def _other_shape(
    comparison: Comparison, actual: Sequence[Array], expected: Sequence[Array]
) -> str | None:
    """Return what is wrong with the shapes of a graph's outputs; None where nothing is."""
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)}, the reference's {comparison.choice.task.output}"
            return f"the graph's output {comparison.outputs[0]!r} is {shapes} {list(theirs.shape)}"
    return None


def against_golden(
    export_dir: Path, record: GraphRecord, manifest: Manifest, task: Task, golden: Golden,
    *, allow_no_effect: bool, open_runner: Callable[[], OrtRunner],
) -> GraphParity:  # fmt: skip
    """Compare a graph with the outputs that the reference gave when the export was verified.

    Quantized weights are computed with as they are; `open_runner` opens such a session.
    """
    last = manifest.base.logits == "last"
    feeding = feeding_of(export_dir, record)
    outputs = feeding.outputs_for(task.outputs)
    graph = open_model(
        export_dir, record, task, open_runner,
        outputs=outputs, last=last, switch=golden.switch, exact=True,
    )  # fmt: skip
    whole = (with_buffers(case, feeding.signature) for case in golden.cases)
    actual = [graph.run(case.feeds) for case in whole]
    judged = judge_outputs(
        golden.cases, actual, golden.expected,
        per_token=task.per_token, choices=task.classifies, dtype=manifest.base.dtype,
        effect=golden.effect, allow_no_effect=allow_no_effect,
    )  # fmt: skip
    return GraphParity(_row(judged, "golden outputs"), golden)


def unverified(reason: str) -> GraphParity:
    """Return the verdict on a graph that was not compared."""
    return GraphParity(unverified_row(reason))


def _row(judged: tuple[Verdict, CheckRow], against: str) -> ParityRow:
    """Return a row of the report from that of `judge_outputs`, which runs on devices too."""
    return ParityRow.model_validate({**judged[1], "against": against})


def _with_encoder(
    row: ParityRow,
    graph: PairModel,
    cases: Sequence[Case],
    expected: Sequence[Array],
    tolerance: float,
) -> ParityRow:
    """Return the row with the encoder's error, without padding; one above the tolerance fails."""
    pairs = []
    for case, theirs in zip(cases, expected, strict=True):
        valid = np.asarray(case.feeds.get("attention_mask", np.ones(theirs.shape[:2])), bool)
        pairs.append((graph.encoder_output(case.feeds)[valid], theirs[valid]))
    error = relative_l2([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    row = row.model_copy(update={"encoder": EncoderRow(relative_l2=error)})
    if error <= tolerance:
        return row
    reason = f"the encoder's relative L2 error {error:.3g} is above the tolerance"
    return _judged(row, "fail", reason)


def _with_greedy(row: ParityRow, greedy: GreedyRow) -> ParityRow:
    """Return the row with the continuations; they can lower its verdict."""
    row = row.model_copy(update={"greedy": greedy})
    return _lowered(row, greedy, "greedy continuations")


def _with_dataset(row: ParityRow, scored: DatasetRow) -> ParityRow:
    """Return the row with the scores; predictions and scores can lower its verdict."""
    row = row.model_copy(update={"dataset": scored})
    row = _lowered(row, scored, "predictions on the data set")
    less_clear = scored.verdict == "ambiguous" and row.verdict == "pass"
    if scored.verdict == "fail" or less_clear:
        return _judged(row, scored.verdict, f"{scored.metric} on the data set: {scored.reason}")
    return row


def _lowered(row: ParityRow, chosen: GreedyRow | DatasetRow, what: str) -> ParityRow:
    """Return the row as choices lower its verdict: one that differs is never a pass."""
    if chosen.clear_disagreements:
        return _judged(row, "fail", f"{chosen.clear_disagreements} {what} differ")
    if chosen.disagreements and row.verdict == "pass" and not _unclear(chosen):
        return _judged(row, "ambiguous", f"{chosen.disagreements} near-tied {what} differ")
    return row


def _unclear(chosen: GreedyRow | DatasetRow) -> bool:
    """Whether what differs has no margin that tells a tie: then the scores decide."""
    return all(each.reference_margin is None for each in chosen.differing)


def _judged(row: ParityRow, verdict: Verdict, reason: str) -> ParityRow:
    return row.model_copy(update={"verdict": verdict, "reason": reason})
