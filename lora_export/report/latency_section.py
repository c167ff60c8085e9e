"""The section on latency: paired ratios with intervals, distributions, start-up, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.reports.report_model import as_json
from lora_export.core.units import size
from lora_export.report.figures import RatioMark, SampleMark, ratio_figure, sample_figure
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import Column, badge, number, section, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.reports.latency_report import LatencyRow
    from lora_export.latency.bench_report import BenchReport, Cell, Gate, Subject
    from lora_export.report.facts import Facts

__all__ = ["latency"]


def latency(facts: Facts) -> Markup | None:
    """Times against the base, as the verification and as ``bench`` measured them."""
    if not facts.latency and facts.bench is None:
        return None
    return section(
        "latency",
        "Latency",
        _verification(facts.latency) if facts.latency else None,
        _bench(facts.bench) if facts.bench is not None else None,
    )


def _verification(rows: Mapping[str, LatencyRow]) -> Markup:
    marks = [
        RatioMark(name, row.ratio, row.ratio_interval, limit=row.max_ratio)
        for name, row in rows.items()
        if row.ratio is not None and row.ratio_interval is not None
    ]
    columns = (
        Column("Graph"), Column("Verdict", "name"), Column("Median ms", "n"),
        Column("p90 ms", "n"), Column("Base median ms", "n"), Column("Ratio", "n"),
        Column("Limit", "n"), Column("Input", "name"), Column("Why", "long"),
    )  # fmt: skip
    body = [
        [
            name,
            badge(row.verdict),
            number(row.median_ms, 2),
            number(row.p90_ms, 2),
            number(row.base_median_ms, 2),
            number(row.ratio),
            number(row.max_ratio, 2),
            f"{row.batch} × {row.length}" if row.batch is not None else "–",
            row.reason,
        ]
        for name, row in rows.items()
    ]
    return join(
        [
            _figure(
                ratio_figure(marks, "Latency over the base’s"),
                "Time over that of the base graph, round by round: the median and its 95 % "
                "interval. Dashed: no difference. Short stroke: the limit.",
            )
            if marks
            else None,
            table("Each graph against the base graph, interleaved", columns, body),
        ]
    )


def _bench(report: BenchReport) -> Markup:
    parts: list[Markup | None] = [tag("h3", "Benchmark")]
    if report.gate is not None:
        parts.append(_gate(report.gate))
    parts += [_cell(cell) for cell in report.cells]
    parts.append(_startup(report.subjects))
    return join(parts)


def _gate(gate: Gate) -> Markup:
    columns = (
        Column("Subject"), Column("Cell", "name"), Column("Verdict", "name"), Column("Ratio", "n"),
        Column("Why", "long"),
    )  # fmt: skip
    rows = [
        [row.subject, row.cell, badge(row.verdict), number(row.ratio), row.reason]
        for row in gate.rows
    ]
    caption = f"The gate: at most {gate.max_ratio:g} of {gate.against}"
    return table(caption, columns, rows)


def _cell(cell: Cell) -> Markup:
    name = cell.name
    samples = [SampleMark(key, row.samples_ms) for key, row in cell.times.items()]
    ratios: dict[str, list[RatioMark]] = {}
    for row in cell.ratios:
        ratios.setdefault(row.over, []).append(RatioMark(row.subject, row.ratio, row.interval))
    known = {
        "median_ms": "Median ms", "p90_ms": "p90 ms", "p99_ms": "p99 ms", "per_second": "Rows/s",
        "tokens_per_second": "Tokens/s", "energy_mj": "Energy mJ",
    }  # fmt: skip
    times = {subject: as_json(row) for subject, row in cell.times.items()}
    keys = [key for key in known if any(row.get(key) is not None for row in times.values())]
    columns = (Column("Subject"), *(Column(known[key], "n") for key in keys))
    rows = [[subject, *(number(row.get(key), 2) for key in keys)] for subject, row in times.items()]
    return join(
        [
            tag("h4", name),
            tag(
                "div",
                _figure(
                    sample_figure(samples, f"Times of {name}"),
                    "Every measured run; the bar is the middle half, the stroke the median. Runs "
                    "off the scale are drawn at its end.",
                ),
                *(
                    _figure(
                        ratio_figure(marks, f"Ratios of {name} over {over}"),
                        f"Over {over}, in pairs, with their intervals. Dashed: no difference.",
                    )
                    for over, marks in ratios.items()
                ),
                class_="charts",
            ),
            table(f"Times of {name}, {cell.rounds} rounds", columns, rows),
        ]
    )


def _startup(subjects: Mapping[str, Subject]) -> Markup | None:
    rows = [
        [
            key,
            number(own.session_ms, 1),
            number(own.first_run_ms, 1),
            size(own.peak_bytes) if own.peak_bytes is not None else "–",
        ]
        for key, subject in subjects.items()
        if (own := subject.startup) is not None
    ]
    columns = (
        Column("Subject"), Column("Session ms", "n"), Column("First run ms", "n"),
        Column("Peak memory", "n"),
    )  # fmt: skip
    return table("Starting, each alone in a new process", columns, rows) if rows else None


def _figure(drawing: Markup, caption: str) -> Markup:
    return tag("figure", drawing, tag("figcaption", caption))
