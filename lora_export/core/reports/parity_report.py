"""``reports/parity.json``: each graph against the unmerged adapter, or its golden outputs.

    ParityReport
    ├── environment            where it was compared; `EnvironmentRow`
    └── graphs {name → row}
        ├── verdict, reason
        ├── dtype, tolerance, effect, effect_share_limit, metrics, inputs, against
        ├── dataset            predictions on a data set, where one was given
        ├── encoder            of an encoder-decoder
        ├── greedy             continuations, of a graph with a cache
        ├── notes              on the adapter
        └── adapters {name → row}      of a graph that adapters share

A graph that was not compared has a verdict, a reason and ``metrics: null``.
"""

from __future__ import annotations

from pydantic import Field, JsonValue

from lora_export.core.reports.report_model import EnvironmentRow, ReportModel
from lora_export.ondevice.judge.tolerances import Verdict

__all__ = [
    "DatasetRow",
    "DifferingExample",
    "EncoderRow",
    "GreedyDifference",
    "GreedyRow",
    "McNemarRow",
    "MetricsRow",
    "ParityReport",
    "ParityRow",
    "unverified_row",
]


class MetricsRow(ReportModel):
    """Outputs against the reference's, over every compared row; null where one is not finite.

    Attributes:
        max_abs: The largest absolute difference.
        relative_l2: ‖graph − reference‖₂ / ‖reference‖₂.
        cosine: The cosine of the angle between the two.
        top1_agreement: The share of rows whose largest entry is the same; null without choices.
        top1_near_ties: Rows that disagree where the reference is nearly tied.
        top1_clear_disagreements: Rows that disagree where it is not.
        mean_kl: The mean of KL(softmax(reference) ‖ softmax(graph)) in nats; null without choices.
        rows: How many rows were compared.
        finite: Whether all numbers of the graph are finite.
    """

    max_abs: float | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    top1_near_ties: int = 0
    top1_clear_disagreements: int = 0
    mean_kl: float | None = None
    rows: int = 0
    finite: bool = True


class McNemarRow(ReportModel):
    """The exact test of McNemar on examples that only one of the two got right.

    Attributes:
        only_graph: Examples that only the graph got right.
        only_reference: Examples that only the reference got right.
        p_value: How likely such a difference is by chance.
    """

    only_graph: int
    only_reference: int
    p_value: float


class DifferingExample(ReportModel):
    """An example of the data set on which graph and reference differ.

    Attributes:
        example: Its place in the data set, from 0.
        text: What was read.
        label: What is right.
        graph: The graph's answer.
        reference: The reference's answer.
        reference_margin: How clearly the reference chose; null where that has no measure.
    """

    example: int
    text: JsonValue = None
    label: JsonValue = None
    graph: JsonValue = None
    reference: JsonValue = None
    reference_margin: float | None = None


class DatasetRow(ReportModel):
    """Scores on a data set; a score is null where it is not finite.

    Attributes:
        metric: The name of the metric.
        count: How many examples there are.
        cut: How many did not fit the model whole.
        base: The score of the model without the adapter's low-rank part; null where not measured.
        graph: The graph's score.
        reference: The reference's score.
        difference: The graph's score minus the reference's.
        difference_interval: Its interval.
        confidence: The confidence of the interval.
        margin: The largest difference that counts as none.
        mcnemar: The test in pairs; null where the metric does not count right answers.
        verdict: Whether the two are as accurate.
        reason: Why.
        disagreements: Examples on which the two differ.
        clear_disagreements: Those of them where the reference is not nearly tied.
        differing: The first of them.
        differing_shown: How many `differing` has.
    """

    metric: str
    count: int
    cut: int = 0
    base: float | None = None
    graph: float | None = None
    reference: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    confidence: float | None = None
    margin: float | None = None
    mcnemar: McNemarRow | None = None
    verdict: Verdict
    reason: str = ""
    disagreements: int = 0
    clear_disagreements: int = 0
    differing: list[DifferingExample] = Field(default_factory=list)
    differing_shown: int = 0


class EncoderRow(ReportModel):
    """The output of an encoder-decoder's encoder, without padding.

    Attributes:
        relative_l2: ‖graph − reference‖₂ / ‖reference‖₂.
    """

    relative_l2: float


class GreedyDifference(ReportModel):
    """The first token in which a continuation leaves the reference's.

    Attributes:
        row: The text, from 0.
        step: The token, from 0.
        graph: The token that the graph chose.
        reference: The token that the reference chose.
        reference_margin: The distance of the reference's two largest logits, over their root mean
            square.
    """

    row: int
    step: int
    graph: int
    reference: int
    reference_margin: float | None = None


class GreedyRow(ReportModel):
    """Greedy continuations by a graph with a cache, and by the reference.

    Attributes:
        rows: How many texts were continued.
        steps: By how many tokens.
        agreeing_tokens: Tokens before the first difference, of all texts together.
        clear_disagreements: Texts that part where the reference is not nearly tied.
        disagreements: Texts that part.
        differing: Where they part.
    """

    rows: int
    steps: int
    agreeing_tokens: int
    clear_disagreements: int = 0
    disagreements: int = 0
    differing: list[GreedyDifference] = Field(default_factory=list)


class ParityRow(ReportModel):
    """The comparison of one graph, or of one adapter of a graph that adapters share.

    Attributes:
        verdict: The verdict.
        reason: Why.
        dtype: The dtype of the graph's weights; decides the tolerance.
        tolerance: The largest relative L2 error that passes.
        effect: What the adapter changes, relative L2; null for the base.
        effect_share_limit: The largest error as a share of the effect.
        metrics: How far the outputs are apart; null where nothing was compared.
        inputs: The shapes of the inputs that were compared.
        against: The reference.
        dataset: Predictions on a data set.
        encoder: The encoder's output, of an encoder-decoder.
        greedy: Continuations, of a graph with a cache.
        base_bit_equal: Whether a swappable graph without an adapter is the base graph bit for bit;
            null where it could not be run.
        with_packed_weights: Whether that held while ONNX Runtime packed the weights.
        mixed_relative_l2: The largest error of a row of a mixed batch, of a batched graph.
        notes: Notes on the adapter.
        adapters: The rows of the adapters that share the graph.
    """

    verdict: Verdict
    reason: str = ""
    dtype: str | None = None
    tolerance: float | None = None
    effect: float | None = None
    effect_share_limit: float | None = None
    metrics: MetricsRow | None = None
    inputs: list[list[int]] = Field(default_factory=list)
    against: str | None = None
    dataset: DatasetRow | None = None
    encoder: EncoderRow | None = None
    greedy: GreedyRow | None = None
    base_bit_equal: bool | None = None
    with_packed_weights: bool | None = None
    mixed_relative_l2: float | None = None
    notes: list[str] = Field(default_factory=list)
    adapters: dict[str, ParityRow] = Field(default_factory=dict)


class ParityReport(ReportModel):
    """The whole document.

    Attributes:
        environment: Where it was compared.
        graphs: The rows by graph.
    """

    environment: EnvironmentRow = EnvironmentRow()
    graphs: dict[str, ParityRow] = Field(default_factory=dict)


def unverified_row(reason: str) -> ParityRow:
    """Return the row of a graph that was not compared."""
    return ParityRow(verdict="unverified", reason=reason, metrics=None)
