"""``reports/quantization.json``: whether a quantized graph is exact, and what quantization cost.

    QuantizationReport
    ├── environment            where it was measured; `EnvironmentRow`
    └── graphs {name → row}
        ├── verdict, reason    of the loss, by the gates
        ├── scheme             what was asked for: weights, block size, method
        ├── exactness          the stored integers, and the graph that computes with them
        ├── loss               the adapter's survival, and errors of the outputs
        ├── gates              the limits, and the verdict of each that was judged
        ├── dataset            scores of the float reference and the graph
        ├── layers {parameter → row}
        ├── kept {parameter → reason}      what stays in float
        ├── float_bytes, quantized_bytes
        └── adapters {name → row}          of a graph that adapters share

Exactness says that the graph is the one that was asked for; loss says how far this is from the
float model. Only exactness is the ``verification`` of the manifest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_export.core.reports.parity_report import DatasetRow
from lora_export.core.reports.report_model import EnvironmentRow, ReportModel
from lora_export.ondevice.judge.tolerances import Verdict

__all__ = [
    "ExactnessRow",
    "GateRow",
    "GraphLinkRow",
    "LayerLossRow",
    "LossRow",
    "LossVerdict",
    "QuantizationReport",
    "QuantizationRow",
    "SchemeRow",
    "WeightsLinkRow",
]

LossVerdict = Literal["pass", "fail", "ambiguous", "ungated"]
"""``ungated``: there was no limit to judge by."""


class SchemeRow(ReportModel):
    """The quantization that was chosen for the weights of a graph.

    Attributes:
        weights: ``int4`` or ``int8``.
        block_size: How many values share a scale; 0 for one scale per output channel.
        method: How the scales were chosen.
    """

    weights: str
    block_size: int
    method: str


class WeightsLinkRow(ReportModel):
    """The first link of exactness: the stored integers against the weights that PEFT merges.

    Attributes:
        verdict: Whether each integer is the merged weight, rounded on the stored scale.
        reason: Why.
        compared: How many parameters were compared.
        worst: The parameter that is furthest from it; null where none was compared.
        steps: max|clip(W / s) − q| of this parameter: ½ is rounding, more is another weight; null
            where it is not finite.
        tolerance: The largest number of steps that passes.
        differing: The parameters that are further.
    """

    verdict: Verdict
    reason: str = ""
    compared: int = 0
    worst: str | None = None
    steps: float | None = None
    tolerance: float | None = None
    differing: list[str] = Field(default_factory=list)


class GraphLinkRow(ReportModel):
    """The second link of exactness: the graph against torch with the dequantized weights.

    Attributes:
        verdict: Whether the two agree.
        reason: Why.
        relative_l2: ‖graph − reference‖ / ‖reference‖.
        tolerance: The largest error that passes.
        accuracy_level: ``session.qdq_matmulnbits_accuracy_level`` of the session that was compared.
    """

    verdict: Verdict
    reason: str = ""
    relative_l2: float | None = None
    tolerance: float | None = None
    accuracy_level: int | None = None


class ExactnessRow(ReportModel):
    """Whether the graph computes what quantizing the merged weights means.

    Attributes:
        verdict: The worse of the two links.
        reason: Why.
        weights: The weights and the stored integers; null where they were not compared.
        graph: The graph; null where it was not compared.
    """

    verdict: Verdict
    reason: str = ""
    weights: WeightsLinkRow | None = None
    graph: GraphLinkRow | None = None


class LossRow(ReportModel):
    """Outputs of the quantized graph against the float reference’s, in the session users open.

    With e = float adapter − float base and ê = quantized adapter − quantized base:

    Attributes:
        effect: ‖e‖ / ‖float adapter‖; null for the base.
        gain: ⟨ê, e⟩ / ‖e‖²; null for the base, or where there is no effect.
        gain_interval: Its 95 % interval over rows.
        cosine: ⟨ê, e⟩ / (‖ê‖ ‖e‖).
        cosine_interval: Its 95 % interval.
        exact_gain: The gain of torch with the weights that are stored, whose products are not
            rounded: what the integers leave, without what the session takes.
        exact_cosine: Its cosine.
        relative_l2: ‖quantized − float‖ / ‖float‖.
        mean_kl: The mean of KL(softmax(float) ‖ softmax(quantized)) of a position, in nats; null
            without choices.
        top1_agreement: The share of positions with the same largest entry; null without choices.
        perplexity: The quantized decoder’s perplexity on the inputs; null for other models.
        float_perplexity: The float reference’s.
        rows: How many rows were compared.
        finite: Whether all numbers of the graph are finite.
        accuracy_level: ``session.qdq_matmulnbits_accuracy_level`` of the session; null where the
            runtime chooses.
    """

    effect: float | None = None
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None
    cosine: float | None = None
    cosine_interval: tuple[float, float] | None = None
    exact_gain: float | None = None
    exact_cosine: float | None = None
    relative_l2: float | None = None
    mean_kl: float | None = None
    top1_agreement: float | None = None
    perplexity: float | None = None
    float_perplexity: float | None = None
    rows: int = 0
    finite: bool = True
    accuracy_level: int | None = None


class GateRow(ReportModel):
    """One limit, and what was held against it.

    Attributes:
        gate: Its name: ``min_gain``, ``max_gain``, ``min_cosine``, ``max_loss`` or
            ``max_metric_drop``.
        limit: The limit.
        value: What was measured; null where it is not finite.
        interval: Its 95 % interval; null where there is none.
        verdict: The verdict.
        reason: Why.
    """

    gate: str
    limit: float
    value: float | None = None
    interval: tuple[float, float] | None = None
    verdict: LossVerdict
    reason: str = ""


class LayerLossRow(ReportModel):
    """One quantized parameter.

    Attributes:
        scheme: ``int4`` or ``int8``.
        block_size: How many values share a scale; 0 for one scale per output channel.
        relative_error: ‖Q(W) − W‖ / ‖W‖.
        error_over_delta: ‖Q(W) − W‖ / ‖ΔW‖: explains, and is no verdict; null without an update.
        gain: The share of ΔW that the stored weights hold, in the update’s singular subspace; null
            without a merged update.
        cosine: The cosine of ΔW and what is stored of it there.
    """

    scheme: str
    block_size: int
    relative_error: float | None = None
    error_over_delta: float | None = None
    gain: float | None = None
    cosine: float | None = None


class QuantizationRow(ReportModel):
    """One quantized graph, or one adapter of a graph that adapters share.

    Attributes:
        verdict: The verdict on the loss.
        reason: Why.
        scheme: What was asked for.
        exactness: Whether the graph is the one that was asked for.
        loss: What quantization cost; null where nothing was compared.
        gates: The limits that were judged.
        dataset: Scores on a data set; its reference is the float model.
        layers: The quantized parameters.
        kept: Parameters that stay in float, each with the reason.
        float_bytes: The bytes of the weights without quantization.
        quantized_bytes: The bytes of the weights as they are stored.
        adapters: The rows of the adapters that share the graph.
    """

    verdict: LossVerdict
    reason: str = ""
    scheme: SchemeRow | None = None
    exactness: ExactnessRow | None = None
    loss: LossRow | None = None
    gates: list[GateRow] = Field(default_factory=list)
    dataset: DatasetRow | None = None
    layers: dict[str, LayerLossRow] = Field(default_factory=dict)
    kept: dict[str, str] = Field(default_factory=dict)
    float_bytes: int | None = None
    quantized_bytes: int | None = None
    adapters: dict[str, QuantizationRow] = Field(default_factory=dict)


class QuantizationReport(ReportModel):
    """The whole document.

    Attributes:
        environment: Where it was measured.
        graphs: The rows by graph.
    """

    environment: EnvironmentRow = EnvironmentRow()
    graphs: dict[str, QuantizationRow] = Field(default_factory=dict)
