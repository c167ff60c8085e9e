"""GitHub annotations: lines on stdout that the runner shows as notes on a run.

    ::error title=…::…      ::warning title=…::…

A message is one line: ``%``, carriage return and line feed become ``%25``, ``%0D``, ``%0A``; in a
title ``:`` and ``,`` become ``%3A``, ``%2C``, so that no name can begin a command of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.exports.verdict import is_deployable
from lora_export.ondevice.printable import FinishedLine, printable
from lora_export.report.quantization_section import judged_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_export.core.reports.parity_report import ParityRow
    from lora_export.report.facts import Facts

__all__ = ["annotate", "findings"]

_LEVELS: Final = {"fail": "error", "ambiguous": "warning", "unverified": "warning"}
_MESSAGE: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_TITLE: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})
_LONGEST: Final = 500
_NO_REASON: Final = "not verified"


def annotate(facts: Facts) -> list[str]:
    """Return a line for everything that is not a pass; none where all is well."""
    return [
        _line(_LEVELS[verdict], title, message)
        for verdict, title, message in findings(facts)
        if verdict in _LEVELS
    ]


def findings(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield verdict, title and message of each graph, adapter and gate."""
    yield from _parity_findings(facts)
    for name, adapter in facts.manifest.adapters.items():
        for note in adapter.notes:
            yield "ambiguous", f"Adapter {name}", note
    for name, row in facts.latency.items():
        yield row.verdict, f"Latency of {name}", row.reason or _NO_REASON
    for name, kept in facts.fidelity.items():
        if lossy := kept.lossy:
            shown = ", ".join(lossy[:3])
            message = f"{len(lossy)} tensors lost more than a tenth of the delta: {shown}"
            yield "ambiguous", f"Fidelity of {name}", message
    for name, lost in judged_rows(facts).items():
        yield lost.verdict, f"Quantization of {name}", lost.reason or _NO_REASON
    gate = facts.bench.gate if facts.bench is not None else None
    for judged in gate.rows if gate is not None else ():
        title = f"Benchmark of {judged.subject}, {judged.cell}"
        yield judged.verdict, title, judged.reason or _NO_REASON


def _parity_findings(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield verdict, title and message of each graph that can be deployed, and of each adapter."""
    for name, record in facts.manifest.graphs.items():
        if not is_deployable(record):
            continue
        yield record.verification, f"Parity of {name}", _reason(facts.parity.get(name))
    for name in facts.manifest.adapters:
        if name not in facts.manifest.graphs:
            yield facts.verification(name), f"Parity of {name}", _reason(facts.parity_of(name))


def _reason(row: ParityRow | None) -> str:
    return (row.reason if row is not None else "") or _NO_REASON


def _line(level: str, title: str, message: str) -> FinishedLine:
    shown, said = printable(title, _LONGEST), printable(message, _LONGEST)
    return FinishedLine(f"::{level} title={shown.translate(_TITLE)}::{said.translate(_MESSAGE)}")
