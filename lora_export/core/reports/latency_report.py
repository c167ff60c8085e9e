"""``reports/latency.json``: each adapter's graph against the base graph, timed in turns.

    LatencyReport
    ├── environment            where it was measured; `EnvironmentRow`
    └── graphs {name → row}    medians, their ratio with its interval, the verdict of the gate

Times are milliseconds. A graph that was not measured has a verdict, a reason and ``ratio: null``.
"""

from __future__ import annotations

from pydantic import Field

from lora_export.core.reports.report_model import EnvironmentRow, ReportModel
from lora_export.ondevice.judge.tolerances import Verdict

__all__ = ["LatencyReport", "LatencyRow", "unmeasured_row"]


class LatencyRow(ReportModel):
    """The times of one graph.

    Attributes:
        verdict: ``fail`` where the interval lies above the limit, ``ambiguous`` astride.
        reason: Why.
        median_ms: The median of its runs.
        p90_ms: Their 90 % quantile.
        base_median_ms: The median of the base graph's runs.
        base_p90_ms: Their 90 % quantile.
        ratio: The median of the rounds' ratios; null where nothing was measured.
        ratio_interval: Its interval.
        confidence: The confidence of the interval.
        max_ratio: The limit.
        rounds: How many rounds were measured.
        rounds_needed: How many would settle an ambiguous row; null where no number would.
        batch: Rows of the input.
        length: Tokens in each row.
        runner: What ran the graph.
    """

    verdict: Verdict
    reason: str = ""
    median_ms: float | None = None
    p90_ms: float | None = None
    base_median_ms: float | None = None
    base_p90_ms: float | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    confidence: float | None = None
    max_ratio: float | None = None
    rounds: int | None = None
    rounds_needed: int | None = None
    batch: int | None = None
    length: int | None = None
    runner: str | None = None


class LatencyReport(ReportModel):
    """The whole document.

    Attributes:
        environment: Where it was measured.
        graphs: The rows by graph.
    """

    environment: EnvironmentRow = EnvironmentRow()
    graphs: dict[str, LatencyRow] = Field(default_factory=dict)


def unmeasured_row(reason: str) -> LatencyRow:
    """Return the row of a graph that was not measured."""
    return LatencyRow(verdict="unverified", reason=reason, ratio=None)
