"""The loss of a data set's metric by quantization, from the scores of both models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.verification.loss.gates import MetricDrop

if TYPE_CHECKING:
    from lora_export.core.reports.parity_report import DatasetRow
    from lora_export.verification.datasets.kind import Metric

__all__ = ["metric_drop"]


def metric_drop(row: DatasetRow, metric: Metric) -> MetricDrop:
    """Return the drop of a metric: positive where the quantized graph is worse.

    Args:
        row: The scores; its reference is the float model.
        metric: The metric. One whose lower values are better rises, and its rise is taken as a
            share of the float model's value.

    A score that is not finite drops by NaN, which no limit allows.
    """
    if row.difference is None or row.difference_interval is None or row.reference is None:
        return MetricDrop(float("nan"), (float("nan"), float("nan")))
    low, high = row.difference_interval
    if metric.lower_is_better:
        size = abs(row.reference)
        return MetricDrop(row.difference / size, (low / size, high / size))
    return MetricDrop(-row.difference, (-high, -low))
