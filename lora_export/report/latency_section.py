"""The section on latency: paired ratios with intervals, distributions, start-up, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.units import size
from lora_export.latency.bench_report import point_name
from lora_export.report.figures import RatioMark, SampleMark, ratio_figure, sample_figure
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import Column, badge, number, section, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.report.facts import Facts

__all__ = ["latency"]


def latency(facts: Facts) -> Markup | None:
    """Times against the base, as the verification and as ``bench`` measured them."""
    if not facts.latency and not facts.bench:
        return None
    return section(
        "latency",
        "Latency",
        _verification(facts.latency) if facts.latency else None,
        _bench(facts.bench) if facts.bench else None,
    )


def _verification(rows: Mapping[str, Any]) -> Markup:
    marks = [
        RatioMark(name, row["ratio"], row["ratio_interval"], limit=row["max_ratio"])
        for name, row in rows.items()
        if row.get("ratio") is not None
    ]
    columns = (
        Column("Graph"), Column("Verdict", "name"), Column("Median ms", "n"),
        Column("p90 ms", "n"), Column("Base median ms", "n"), Column("Ratio", "n"),
        Column("Limit", "n"), Column("Input", "name"), Column("Why", "long"),
    )  # fmt: skip
    body = [
        [
            name,
            badge(str(row.get("verdict"))),
            number(row.get("median_ms"), 2),
            number(row.get("p90_ms"), 2),
            number(row.get("base_median_ms"), 2),
            number(row.get("ratio")),
            number(row.get("max_ratio"), 2),
            f"{row['batch']} × {row['length']}" if "batch" in row else "–",
            row.get("reason") or "",
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


def _bench(report: Mapping[str, Any]) -> Markup:
    parts: list[Markup | None] = [tag("h3", "Benchmark")]
    gate = report.get("gate")
    if gate:
        parts.append(_gate(gate))
    parts += [_cell(cell) for cell in report.get("cells", [])]
    parts.append(_startup(report.get("subjects", {})))
    return join(parts)


def _gate(gate: Mapping[str, Any]) -> Markup:
    columns = (
        Column("Subject"), Column("Cell", "name"), Column("Verdict", "name"), Column("Ratio", "n"),
        Column("Why", "long"),
    )  # fmt: skip
    rows = [
        [row["subject"], row["cell"], badge(row["verdict"]), number(row["ratio"]), row["reason"]]
        for row in gate["rows"]
    ]
    caption = f"The gate: at most {gate['max_ratio']:g} of {gate['against']}"
    return table(caption, columns, rows)


def _cell(cell: Mapping[str, Any]) -> Markup:
    sizes = (cell["batch"], cell["length"], cell.get("past", 0), cell.get("source", 0))
    name = point_name(cell["kind"], *sizes)
    samples = [SampleMark(key, row["samples_ms"]) for key, row in cell["times"].items()]
    ratios: dict[str, list[RatioMark]] = {}
    for row in cell["ratios"]:
        mark = RatioMark(row["subject"], row["ratio"], row["interval"])
        ratios.setdefault(row["over"], []).append(mark)
    known = {
        "median_ms": "Median ms", "p90_ms": "p90 ms", "p99_ms": "p99 ms", "per_second": "Rows/s",
        "tokens_per_second": "Tokens/s", "energy_mj": "Energy mJ",
    }  # fmt: skip
    keys = [key for key in known if any(row.get(key) is not None for row in cell["times"].values())]
    columns = (Column("Subject"), *(Column(known[key], "n") for key in keys))
    rows = [
        [subject, *(number(row.get(key), 2) for key in keys)]
        for subject, row in cell["times"].items()
    ]
    return join(
        [
            tag("h4", name),
            _figure(
                sample_figure(samples, f"Times of {name}"),
                "Every measured run; the bar holds the middle half, the stroke is the median. What "
                "is off the scale lies at its end.",
            ),
            *(
                _figure(
                    ratio_figure(marks, f"Ratios of {name} over {over}"),
                    f"Over {over}, in pairs, with their intervals. Dashed: no difference.",
                )
                for over, marks in ratios.items()
            ),
            table(f"Times of {name}, {cell['rounds']} rounds", columns, rows),
        ]
    )


def _startup(subjects: Mapping[str, Any]) -> Markup | None:
    rows = [
        [
            key,
            number(own["session_ms"], 1),
            number(own["first_run_ms"], 1),
            size(own["peak_bytes"]) if own.get("peak_bytes") is not None else "–",
        ]
        for key, subject in subjects.items()
        if (own := subject.get("startup")) is not None
    ]
    columns = (
        Column("Subject"), Column("Session ms", "n"), Column("First run ms", "n"),
        Column("Peak memory", "n"),
    )  # fmt: skip
    return table("Starting, each alone in a new process", columns, rows) if rows else None


def _figure(drawing: Markup, caption: str) -> Markup:
    return tag("figure", drawing, tag("figcaption", caption))
