"""``report.md``: the report in short, for a pull request; no text in it is markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.core.units import size
from lora_export.ondevice.printable import printable
from lora_export.report.facts import named
from lora_export.report.github import findings
from lora_export.report.page_parts import difference, number
from lora_export.report.quantization_section import judged_rows, scheme_of, sizes_of
from lora_export.report.sections import adapter_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_export.latency.bench_report import Gate
    from lora_export.report.facts import Facts

__all__ = ["markdown"]

_SIGNS: Final = {"pass": "✅ pass", "fail": "❌ fail", "ambiguous": "⚠️ ambiguous"}
_LISTED: Final = ("fail", "ambiguous", "unverified")
_MOST_FOUND: Final = 20
_SPECIAL: Final = re.compile(r"[&<>\\`*_{}\[\]#|~@$:]|\bwww\.")
_BRACKETS: Final = str.maketrans({"[": "\\[", "]": "\\]"})
_CELL: Final = 200
_NOTE: Final = 1000


def markdown(facts: Facts) -> str:
    """Return the report as GitHub's markdown."""
    base = facts.manifest.base
    about = [_text(base.task), _text(base.dtype), size(sum(facts.sizes.values()))]
    date = facts.environment.date
    parts = [
        f"## {_sign(facts.verdict)}: {_text(named(facts))} on {_text(base.model_class)}",
        f"{', '.join(about)}{f'; verified on {_text(date)}' if date else ''}",
    ]
    if found := _found(facts):
        parts.append(found)
    if facts.manifest.adapters:
        parts.append(_adapters(facts))
    if quantized := _quantized(facts):
        parts += ["### Quantization", quantized]
    if scored := _scored(facts):
        parts += ["### Accuracy on the task", scored]
    if timed := _timed(facts):
        parts += ["### Latency", timed]
    if facts.bench is not None and (gate := facts.bench.gate) is not None:
        parts += [f"### Benchmark: {_sign(gate.verdict)}", _gate(gate)]
    return "\n\n".join(parts) + "\n"


def _found(facts: Facts) -> str:
    """Return everything that is not a pass as a list, failures first."""
    rows = [row for row in findings(facts) if row[0] in _LISTED]
    rows.sort(key=lambda row: _LISTED.index(row[0]))
    lines = [
        f"- {_sign(verdict)}: **{_text(title)}**: {_text(reason, _NOTE)}"
        for verdict, title, reason in rows[:_MOST_FOUND]
    ]
    more = len(rows) - _MOST_FOUND
    return "\n".join([*lines, *([f"- … and {more} more"] if more > 0 else [])])


def _adapters(facts: Facts) -> str:
    rows = []
    for name, record in facts.manifest.adapters.items():
        row = facts.parity_of(name)
        metrics = row.metrics if row is not None else None
        rows.append(
            [
                _text(name),
                _sign(facts.verification(name)),
                number(metrics.relative_l2 if metrics is not None else None),
                number(row.effect if row is not None else None),
                f"{record.tensors_applied} of {record.tensors_total}",
                size(adapter_bytes(facts, name)),
            ]
        )
    heads = ("Adapter", "Parity", "Relative L2 error", "Effect", "Tensors applied", "Adds")
    return _table(heads, rows)


def _quantized(facts: Facts) -> str | None:
    rows = []
    for name, row in judged_rows(facts).items():
        loss = row.loss
        rows.append(
            [
                _text(name),
                _sign(row.verdict),
                _sign(row.exactness.verdict) if row.exactness is not None else "",
                _text(scheme_of(row)),
                number(loss.gain if loss is not None else None),
                number(loss.cosine if loss is not None else None),
                number(loss.relative_l2 if loss is not None else None),
                sizes_of(row),
            ]
        )
    heads = (
        "Graph", "Loss", "Exact", "Weights", "Gain", "Cosine", "Relative L2 error", "Size",
    )  # fmt: skip
    return _table(heads, rows) if rows else None


def _scored(facts: Facts) -> str | None:
    rows = []
    for name in facts.manifest.adapters:
        row = facts.parity_of(name)
        if row is None or (found := row.dataset) is None:
            continue
        rows.append(
            [
                _text(name),
                _sign(found.verdict),
                f"{_text(found.metric)} of {number(found.count)}",
                number(found.base, 4),
                number(found.reference, 4),
                number(found.graph, 4),
                difference(found.difference, found.difference_interval).translate(_BRACKETS),
                number(found.disagreements),
            ]
        )
    heads = ("Adapter", "Same", "Metric", "Base", "Reference", "Graph", "Difference", "Differ")
    return _table(heads, rows) if rows else None


def _timed(facts: Facts) -> str | None:
    rows = []
    for name, row in facts.latency.items():
        if row.ratio is None or row.ratio_interval is None:
            continue
        low, high = row.ratio_interval
        rows.append(
            [
                _text(name),
                _sign(row.verdict),
                f"{row.ratio:.3f} \\[{low:.3f}, {high:.3f}\\]",
                number(row.max_ratio, 2),
                number(row.median_ms, 2),
                number(row.base_median_ms, 2),
            ]
        )
    heads = ("Graph", "Gate", "Ratio to the base", "Limit", "Median ms", "Base median ms")
    return _table(heads, rows) if rows else None


def _gate(gate: Gate) -> str:
    rows = [
        [_text(row.subject), _text(row.cell), _sign(row.verdict), _text(row.reason)]
        for row in gate.rows
    ]
    return _table(("Subject", "Cell", "Gate", "Why"), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sign(verdict: str) -> str:
    return _SIGNS.get(verdict, f"❔ {_text(verdict)}")


def _text(value: object, limit: int = _CELL) -> str:
    r"""Return text that is only text: no markup, link, mention or reference to an issue.

    >>> _text("a|b <c> @me #1")
    'a&#124;b &#60;c&#62; &#64;me &#35;1'
    """
    shown = printable(value, limit)
    return _SPECIAL.sub(lambda m: "".join(f"&#{ord(c)};" for c in m[0]), shown)
