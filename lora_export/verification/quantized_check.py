"""A quantized graph: whether it is exact, and what quantization cost.

    torch, float weights          →  outputs E, without the update P, answers
    torch, dequantized integers   →  outputs D
    graph, exact products         →  D within the tolerance of the dtype        verification
    graph, as users open it       →  errors from E; ê against e = E − P         loss, by the gates

The stored integers themselves are compared with the weights that PEFT merges (`stored_layers`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import UnsupportedError
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.reports.quantization_report import ExactnessRow, GraphLinkRow, LossRow
from lora_export.ondevice.judge.metrics import compare
from lora_export.ondevice.judge.tolerances import tolerance_of, worst_of
from lora_export.ondevice.ort.ort_session import EXACT_LEVEL, USUAL_LEVEL
from lora_export.verification.datasets.dataset import predict, score
from lora_export.verification.expected import rows_of
from lora_export.verification.loss.gates import judge_loss, summarize
from lora_export.verification.loss.metric_drop import metric_drop
from lora_export.verification.loss.perplexity import perplexity
from lora_export.verification.loss.quantized_row import quantization_row
from lora_export.verification.loss.survival import FourOutputs, measure_survival
from lora_export.verification.parity import GraphParity, judge_graph, unverified
from lora_export.verification.quantized_reference import run_references

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.reports.parity_report import DatasetRow, DifferingExample
    from lora_export.verification.comparison import Comparison
    from lora_export.verification.datasets.dataset import Dataset
    from lora_export.verification.loss.gates import LossGates, MetricDrop
    from lora_export.verification.loss.stored_layers import StoredLayers
    from lora_export.verification.quantized_reference import QuantizedReferences

__all__ = ["against_dequantized"]

Array = npt.NDArray[Any]


def against_dequantized(
    comparison: Comparison,
    gates: LossGates,
    *,
    dataset: Dataset | None,
    allow_no_effect: bool,
) -> GraphParity:
    """Compare a quantized graph with torch, on the stored weights and on the float ones.

    Args:
        comparison: The graph and its inputs.
        gates: The limits of the loss.
        dataset: Examples that the float model and the graph are scored on.
        allow_no_effect: Whether an adapter may change nothing.
    """
    try:
        found = run_references(comparison, dataset)
    except UnsupportedError as error:  # torch calls the weights otherwise than the graph
        return unverified(error.message)
    exact = judge_graph(
        comparison,
        comparison.open_graph(exact=True),
        found.expected,
        against=_against(comparison),
        allow_no_effect=allow_no_effect,
    )
    if exact.row.metrics is None:
        return exact
    parity = _with_weights(exact, found.layers)
    usual = comparison.open_graph(exact=False)
    actual = [usual.run(case.feeds) for case in comparison.cases]
    loss = _loss(comparison, found, actual)
    scored: DatasetRow | None = None
    differing: Sequence[DifferingExample] = ()
    drop: MetricDrop | None = None
    if dataset is not None and found.exact.answers is not None:
        scored, differing = score(
            dataset, predict(dataset, usual), found.exact.answers, found.exact.base_answers,
            tolerance=tolerance_of(comparison.choice.dtype), seed=comparison.seed,
        )  # fmt: skip
        drop = metric_drop(scored, dataset.kind.metrics[dataset.metric])
    adapter = comparison.choice.name if comparison.choice.adapter is not None else None
    judged = judge_loss(gates, loss, has_adapter=adapter is not None, drop=drop)
    verdict, reason = summarize(judged, loss, found.layers.rows, adapter=adapter)
    choice = comparison.choice
    row = quantization_row(
        choice.export_dir, choice.manifest, choice.record, found.layers.rows
    ).model_copy(
        update={
            "verdict": verdict,
            "reason": reason,
            "exactness": _exactness(exact, found.layers),
            "loss": loss,
            "gates": judged,
            "dataset": scored,
        }
    )  # fmt: skip
    return replace(parity, differing=differing, quantization=row)


def _against(comparison: Comparison) -> str:
    if comparison.choice.adapter is None:
        return "transformers, dequantized weights"
    if comparison.choice.record.mode is Mode.MERGED:
        return "PEFT, merged, dequantized weights"
    return "PEFT, unmerged, dequantized base"


def _with_weights(exact: GraphParity, layers: StoredLayers) -> GraphParity:
    """Return the verdict on the graph, lowered where the integers are those of other weights."""
    if layers.link.verdict != "fail":
        return exact
    update = {"verdict": layers.link.verdict, "reason": layers.link.reason}
    return replace(exact, row=exact.row.model_copy(update=update))


def _exactness(exact: GraphParity, layers: StoredLayers) -> ExactnessRow:
    row, metrics = exact.row, exact.row.metrics
    graph = GraphLinkRow(
        verdict=row.verdict,
        reason=row.reason,
        relative_l2=metrics.relative_l2 if metrics is not None else None,
        tolerance=row.tolerance,
        accuracy_level=EXACT_LEVEL,
    )
    links = (layers.link, graph)
    verdict = worst_of([each.verdict for each in links])
    reasons = [each.reason for each in links if each.verdict != "pass"]
    return ExactnessRow(
        verdict=verdict, reason="; ".join(reasons), weights=layers.link, graph=graph
    )


def _loss(comparison: Comparison, found: QuantizedReferences, actual: Sequence[Array]) -> LossRow:
    """Return what quantization cost, of the outputs of the session that users open."""
    task, cases = comparison.choice.task, comparison.cases
    ours, theirs = (rows_of(each, cases, task) for each in (actual, found.exact.outputs))
    choices = task.classifies and theirs[0].shape[-1] > 1
    errors = compare(
        ours, theirs, choices=choices, tolerance=tolerance_of(comparison.choice.dtype)
    ).as_json()
    row = LossRow(
        relative_l2=errors["relative_l2"],
        mean_kl=errors["mean_kl"],
        top1_agreement=errors["top1_agreement"],
        rows=errors["rows"],
        finite=errors["finite"],
        accuracy_level=USUAL_LEVEL,
    )
    if task.causal and task.scores_tokens:
        texts = [perplexity(each, cases) for each in (actual, found.exact.outputs)]
        row = row.model_copy(update={"perplexity": texts[0], "float_perplexity": texts[1]})
    if found.exact.plain is None or found.plain is None:
        return row
    plain = rows_of(found.exact.plain, cases, task)
    base = rows_of(_base_outputs(comparison) or found.plain, cases, task)
    survival = measure_survival(FourOutputs(theirs, plain, ours, base), seed=comparison.seed)
    stored = (rows_of(each, cases, task) for each in (found.expected.outputs, found.plain))
    exact = measure_survival(FourOutputs(theirs, plain, *stored), seed=comparison.seed)
    return row.model_copy(
        update={
            "effect": survival.effect if np.isfinite(survival.effect) else None,
            "gain": survival.gain,
            "gain_interval": survival.gain_interval,
            "cosine": survival.cosine,
            "cosine_interval": survival.cosine_interval,
            "exact_gain": exact.gain,
            "exact_cosine": exact.cosine,
            "finite": row.finite and survival.finite,
        }
    )


def _base_outputs(comparison: Comparison) -> list[Array] | None:
    """Return the outputs of the base's own graph; None where those are not without the update.

    An adapter that brings a head, a bias or rows has them without its update too, and the base's
    graph does not: torch then stands for it, with the stored weights.
    """
    of = comparison.choice
    base = of.manifest.base_graph
    if of.adapter is None or base.missing or not _is_low_rank_alone(of.adapter):
        return None
    choice = replace(of, name=BASE_GRAPH, record=base, open_runner=of.open_base)
    graph = replace(comparison, choice=choice).open_graph(exact=False)
    return [graph.run(case.feeds) for case in comparison.cases]


def _is_low_rank_alone(adapter: Adapter) -> bool:
    """Whether scale 0 makes the adapter the base: DoRA's magnitudes, heads and biases stay."""
    whole = (*adapter.saved, *adapter.added, *adapter.rows)
    return not whole and all(each.magnitude is None for each in adapter.low_rank)
