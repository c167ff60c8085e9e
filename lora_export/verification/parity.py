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

from lora_export.core.memory import available_bytes
from lora_export.core.reports.parity_report import EncoderRow, ParityRow, unverified_row
from lora_export.ondevice.judge.golden_checks import judge_outputs
from lora_export.ondevice.judge.golden_files import Case, Golden, valid_rows
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.ondevice.judge.tolerances import tolerance_of
from lora_export.runtime.reference import Reference, estimate_bytes
from lora_export.verification.datasets.dataset import Dataset, predict, score
from lora_export.verification.datasets.questions import Answers, RecomputingModel
from lora_export.verification.graph_model import PairModel, open_model
from lora_export.verification.greedy import Greedy, compare_greedy, greedy_of_reference, prompts_for
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import (
    CASES,
    GOLDEN_CASES,
    make_cases,
    with_buffers,
)
from lora_export.weights.positions import long_rope_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.core.reports.parity_report import DatasetRow, DifferingExample, GreedyRow
    from lora_export.graph.spec.tasks import Task
    from lora_export.ondevice.judge.golden_checks import CheckRow
    from lora_export.ondevice.judge.tolerances import Verdict
    from lora_export.runtime.ort import OrtRunner
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["GraphParity", "against_golden", "against_reference", "unverified"]

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
    """

    row: ParityRow
    golden: Golden | None = field(default=None, repr=False)
    adapters: Mapping[str, GraphParity] = field(default_factory=dict, repr=False)
    differing: Sequence[DifferingExample] = field(default=(), repr=False)

    @property
    def verdict(self) -> Verdict:
        """The verdict of the row."""
        return self.row.verdict


@dataclass(frozen=True)
class _Expected:
    """The reference's outputs and effect."""

    outputs: list[Array]
    effect: float | None
    answers: Answers | None
    base_answers: Answers | None
    greedy: Greedy | None
    hidden: list[Array]


def against_reference(
    root: Path,
    record: GraphRecord,
    manifest: Manifest,
    checkpoint: Checkpoint,
    task: Task,
    *,
    adapter: Adapter | None,
    labels_count: int | None,
    vocab_size: int | None,
    seed: int,
    allow_no_effect: bool,
    dataset: Dataset | None,
    open_runner: Callable[[], OrtRunner],
) -> GraphParity:
    """Compare a graph with the unmerged adapter in torch.

    Args:
        root: The export directory.
        record: The graph.
        manifest: The export's manifest.
        checkpoint: The base.
        task: The export's task.
        adapter: The adapter of this graph; None for the base.
        labels_count: The width of the head.
        vocab_size: The number of tokens, where the adapter brings another than the base's.
        seed: Seeds the inputs.
        allow_no_effect: Whether an adapter may change nothing.
        dataset: Examples whose predictions are compared too.
        open_runner: Opens the graph, with the adapter where it shares one.
    """
    if reason := _too_large(checkpoint):
        return unverified(reason)
    feeding = feeding_of(root, record)
    if reason := feeding.reason or feeding.cache_reason:
        return unverified(reason)
    outputs = feeding.outputs_for(task.outputs)
    cases = make_cases(
        checkpoint.config,
        feeding.signature,
        seed=seed,
        left_padding=task.causal,
        shapes=feeding.shapes(CASES),
        vocab_size=vocab_size,
    )
    reference = Reference(
        checkpoint, task, adapter=adapter, labels_count=labels_count, vocab_size=vocab_size
    )
    last = manifest.base.logits == "last"
    expected = _run_reference(
        reference, task, cases, dataset,
        has_adapter=adapter is not None, last=last,
        prompts=prompts_for(
            feeding, checkpoint.config,
            seed=seed, left_padding=task.causal, vocab_size=vocab_size,
        )
        if manifest.base.cache
        else None,
    )  # fmt: skip
    switch = long_rope_threshold(checkpoint.config)
    graph = open_model(root, record, task, open_runner, outputs=outputs, last=last, switch=switch)
    actual = [graph.run(case.feeds) for case in cases]
    for ours, theirs in zip(actual, expected.outputs, strict=True):
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)}, the reference's {task.output} {list(theirs.shape)}"
            return unverified(f"the graph's output {outputs[0]!r} is {shapes}")
    judged = judge_outputs(
        cases, actual, expected.outputs,
        per_token=task.per_token, choices=task.classifies, dtype=manifest.base.dtype,
        effect=expected.effect, allow_no_effect=allow_no_effect,
    )  # fmt: skip
    row = _row(judged, "PEFT, unmerged, float32" if adapter else "transformers, float32")
    tolerance = tolerance_of(manifest.base.dtype)
    differing: Sequence[DifferingExample] = ()
    if dataset is not None and expected.answers is not None:
        scored, differing = score(
            dataset, predict(dataset, graph), expected.answers, expected.base_answers,
            tolerance=tolerance, seed=seed,
        )  # fmt: skip
        row = _with_dataset(row, scored)
    if isinstance(graph, PairModel):
        row = _with_encoder(row, graph, cases, expected.hidden, tolerance)
    if expected.greedy is not None:
        decoder = graph.decoder(expected.greedy.case.feeds)
        greedy = compare_greedy(decoder, expected.greedy, tolerance=tolerance, switch=switch)
        row = _with_greedy(row, greedy)
    kept = slice(0, GOLDEN_CASES)
    golden = Golden(cases[kept], expected.outputs[kept], expected.effect, switch)
    return GraphParity(row, golden, differing=differing)


def against_golden(
    root: Path, record: GraphRecord, manifest: Manifest, task: Task, golden: Golden,
    *, allow_no_effect: bool, open_runner: Callable[[], OrtRunner],
) -> GraphParity:  # fmt: skip
    """Compare a graph with the outputs that the reference gave when the export was verified."""
    last = manifest.base.logits == "last"
    feeding = feeding_of(root, record)
    outputs = feeding.outputs_for(task.outputs)
    graph = open_model(
        root, record, task, open_runner, outputs=outputs, last=last, switch=golden.switch
    )
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


def _too_large(checkpoint: Checkpoint) -> str | None:
    free = available_bytes()
    tokens = sum(batch * length for batch, length in CASES)
    needed = estimate_bytes(checkpoint, tokens=tokens)
    if free is None or needed <= free:
        return None
    return (
        f"the reference needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
        "free; verify on a larger machine with: lora-export verify OUT --base BASE"
    )


def _run_reference(
    reference: Reference,
    task: Task,
    cases: Sequence[Case],
    dataset: Dataset | None,
    *,
    has_adapter: bool,
    last: bool,
    prompts: tuple[Case, int] | None,
) -> _Expected:
    """Run the reference on all inputs, with and without the adapter's low-rank part; close it."""
    positions = slice(-1, None) if last else slice(None)
    try:
        outputs: list[Array] = [reference.run(case.feeds)[:, positions] for case in cases]
        hidden = [reference.encode(c.feeds) for c in cases] if task.encoder_decoder else []
        names = dataset.reading.signature.input_names if dataset is not None else ()
        asked = RecomputingModel(reference.run, names)
        answers = predict(dataset, asked) if dataset is not None else None
        effect = greedy = base_answers = None
        if prompts is not None:
            greedy = greedy_of_reference(reference.run, prompts[0], steps=prompts[1])
        if has_adapter:
            with reference.without_low_rank():
                plain = [reference.run(case.feeds)[:, positions] for case in cases]
                base_answers = predict(dataset, asked) if dataset is not None else None
            effect = relative_l2(_rows(plain, cases, task), _rows(outputs, cases, task))
    finally:
        reference.close()
    return _Expected(outputs, effect, answers, base_answers, greedy, hidden)


def _rows(outputs: Sequence[Array], cases: Sequence[Case], task: Task) -> list[Array]:
    return [
        valid_rows(output, case, per_token=task.per_token)
        for output, case in zip(outputs, cases, strict=True)
    ]


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
