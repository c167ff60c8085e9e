"""The sections of the page: each a function from `Facts` to markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.reports.parity_report import MetricsRow, ParityRow
from lora_export.core.reports.report_model import as_json
from lora_export.core.units import size
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.exports.verdict import NOT_APPLICABLE, is_deployable
from lora_export.ondevice.printable import printable
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import (
    DASH,
    Column,
    badge,
    count,
    difference,
    facts_list,
    number,
    section,
    short,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.manifest import AdapterRecord
    from lora_export.core.reports.parity_report import DatasetRow
    from lora_export.report.facts import Facts

__all__ = ["adapter_bytes", "environment", "merged", "parity", "sizes"]

_TEXT: Final = 160
_SHORT: Final = frozenset({"cpu", "os"})


def merged(facts: Facts) -> Markup:
    """Return the section on the base, the adapters, and the tensors that were applied."""
    base = facts.manifest.base
    about = facts_list(
        {
            "Base": base.source,
            "Class": base.model_class,
            "Task": base.task,
            "Stored in": base.dtype,
            "Pooling": base.pooling,
            "Graph": f"{base.graph.source} (given)" if base.graph else "traced",
            "Fingerprint": tag("code", short(base.fingerprint)),
        }
    )
    rows = [
        (
            name,
            record.source,
            record.format,
            number(record.rank),
            "" if record.scale is None else number(record.scale),
            _coverage(record),
            _notes(record),
        )
        for name, record in facts.manifest.adapters.items()
    ]
    columns = (
        Column("Adapter"), Column("Source", "long"), Column("Format"), Column("Rank", "n"),
        Column("Scale", "n"), Column("Tensors applied", "name"), Column("Notes", "long"),
    )  # fmt: skip
    shown = (
        table("Adapters, and how much of each was applied", columns, rows)
        if rows
        else tag("p", "No adapter: the export holds the base's graph only.")
    )
    return section("merged", "What was merged into what", about, shown)


def _coverage(record: AdapterRecord) -> Markup:
    applied, total = record.tensors_applied, record.tensors_total
    text = f"{applied} of {total}"
    bar = tag("progress", text, value=applied, max=max(total, 1), aria_label=f"{text} applied")
    return tag("span", f"{text} ", bar)


def _notes(record: AdapterRecord) -> str:
    notes = []
    if record.combined is not None:
        parts = ", ".join(f"{part.name} × {part.weight:g}" for part in record.combined.parts)
        notes.append(f"combined by {record.combined.method}: {parts}")
    if record.dropped:
        notes.append(f"dropped: {', '.join(record.dropped)}")
    if record.missing_in_base:
        notes.append(f"brings: {', '.join(record.missing_in_base)}")
    if record.labels:
        notes.append(f"labels: {', '.join(record.labels)}")
    if record.companions is not None and record.companions.taken:
        notes.append(f"from its folder: {', '.join(record.companions.taken)}")
    notes += record.notes
    return printable("; ".join(notes), 6 * _TEXT)


def parity(facts: Facts) -> Markup:
    """Every graph against the unmerged adapter, and task accuracy."""
    rows: dict[str, ParityRow] = {}
    verdicts: dict[str, str] = {}
    for name, graph in facts.manifest.graphs.items():
        row = facts.parity.get(name, ParityRow(verdict=graph.verification))
        rows[name] = row
        verdicts[name] = row.verdict if is_deployable(graph) else NOT_APPLICABLE
        for adapter, own in row.adapters.items():
            rows[f"{name} with {adapter}"] = own
    columns = (
        Column("Graph"), Column("Verdict", "name"), Column("Relative L2 error", "n"),
        Column("Tolerance", "n"), Column("Adapter’s effect", "n"), Column("Top-1 agreement", "n"),
        Column("Why", "long"),
    )  # fmt: skip
    shown = table(
        "Each graph’s outputs against the reference’s on the same inputs",
        columns,
        [_parity_row(name, row, verdicts.get(name, row.verdict)) for name, row in rows.items()],
    )
    against = sorted({row.against for row in rows.values() if row.against})
    note = tag("p", f"Compared with: {'; '.join(against)}.", class_="soft") if against else None
    scored = {name: row.dataset for name, row in rows.items() if row.dataset is not None}
    return section("parity", "Parity", note, shown, _accuracy(scored) if scored else None)


def _parity_row(name: str, row: ParityRow, verdict: str) -> list[object]:
    metrics = row.metrics or MetricsRow()
    return [
        name,
        badge(verdict),
        number(metrics.relative_l2),
        number(row.tolerance),
        number(row.effect),
        number(metrics.top1_agreement, 4),
        printable(row.reason or "not verified", 2 * _TEXT),
    ]


def _accuracy(scored: Mapping[str, DatasetRow]) -> Markup:
    columns = (
        Column("Graph"), Column("Verdict", "name"), Column("Metric", "name"),
        Column("Examples", "n"), Column("Base", "n"), Column("Reference", "n"),
        Column("Graph", "n"), Column("Difference", "n"), Column("McNemar p", "n"),
        Column("Different answers", "n"),
    )  # fmt: skip
    rows = []
    for name, each in scored.items():
        rows.append(
            [
                name,
                badge(each.verdict),
                each.metric,
                number(each.count),
                number(each.base, 4),
                number(each.reference, 4),
                number(each.graph, 4),
                difference(each.difference, each.difference_interval),
                number(each.mcnemar.p_value if each.mcnemar is not None else None),
                number(each.disagreements),
            ]
        )
    shown = table("Scores on the data set, and graph minus reference", columns, rows)
    lists = [_disagreements(name, each) for name, each in scored.items() if each.differing]
    note = tag(
        "p",
        "Base: the same model with the adapter’s low-rank part switched off. The interval is a "
        "bootstrap over examples, in pairs.",
        class_="soft",
    )
    return join([tag("h3", "Accuracy on the task"), shown, note, *lists])


def _disagreements(name: str, row: DatasetRow) -> Markup:
    columns = (
        Column("Example"), Column("Input", "long"), Column("Expected", "long"),
        Column("Reference", "long"), Column("Graph", "long"),
    )  # fmt: skip
    rows = [
        [
            number(each.example),
            *(
                DASH if value is None else printable(value, _TEXT)
                for value in (each.text, each.label, each.reference, each.graph)
            ),
        ]
        for each in row.differing
    ]
    caption = f"Where {name} and the reference differ"
    return tag(
        "details",
        tag("summary", f"{caption}: {len(rows)} of {row.disagreements} shown"),
        table(caption, columns, rows),
    )


def sizes(facts: Facts) -> Markup:
    """Return the section on the size of each file, and the bytes that an adapter adds."""
    total = sum(facts.sizes.values())
    rows = [
        [file, size(count_bytes), f"{count_bytes / total:.1%}"]
        for file, count_bytes in sorted(facts.sizes.items(), key=lambda row: (-row[1], row[0]))
    ]
    columns = (Column("File"), Column("Size", "n"), Column("Share", "n"))
    shown = tag(
        "details",
        tag("summary", f"All {count(len(rows), 'file')}, {size(total)}"),
        table("Files by size", columns, rows),
    )
    base = facts.sizes.get("weights/base.safetensors", 0)
    adapters = [
        [name, size(own), f"{own / base:.2%}" if base else "–"]
        for name, own in ((n, adapter_bytes(facts, n)) for n in facts.manifest.adapters)
    ]
    heads = (Column("Adapter"), Column("Adds", "n"), Column("Of the base", "n"))
    added = table("What each adapter adds to the base", heads, adapters) if adapters else None
    return section("sizes", "Sizes", added, shown)


def adapter_bytes(facts: Facts, name: str) -> int:
    """Return the size of the files that only this adapter has; a row of a stack has none."""
    stored = stored_adapter(facts.manifest, name)
    files = {*stored.files, stored.record.golden}
    return sum(facts.sizes.get(file, 0) for file in files if file is not None)


def environment(facts: Facts) -> Markup:
    """Return the section on the machine and the versions of packages."""
    rows: dict[str, Any] = {"Written by": facts.manifest.tool}
    bench = as_json(facts.bench.environment) if facts.bench is not None else {}
    for source in (as_json(facts.environment), bench):
        rows |= {_title(key): _valued(key, value) for key, value in source.items()}
    graphs = facts.manifest.graphs.items()
    rows["Graphs"] = join(
        tag("div", f"{name}: opset {each.opset}, ", tag("code", short(each.sha256)))
        for name, each in graphs
    )
    return section("environment", "Environment", facts_list(rows))


def _title(key: str) -> str:
    words = key.removesuffix("_bytes").replace("_", " ")
    return words.upper() if words in _SHORT else words.capitalize()


def _valued(key: str, value: object) -> str:
    """Return a value as text, bytes with a unit."""
    return size(value) if key.endswith("_bytes") and isinstance(value, int) else _flat(value)


def _flat(value: object) -> str:
    """Return nested values as one line."""
    if isinstance(value, dict):
        pairs = ((key, _flat(each)) for key, each in value.items() if each not in (None, [], {}))
        return printable(", ".join(f"{key} {text}" for key, text in pairs), 4 * _TEXT)
    if isinstance(value, list):
        return printable(", ".join(_flat(each) for each in value), 4 * _TEXT)
    return "" if value is None else printable(value, 4 * _TEXT)
