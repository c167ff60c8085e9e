"""GitHub annotations: lines on stdout that the runner shows as notes on a run.

    ::error title=…::…      ::warning title=…::…

A message is one line: ``%``, carriage return and line feed become ``%25``, ``%0D``, ``%0A``; in a
title ``:`` and ``,`` become ``%3A``, ``%2C``, so that no name can begin a command of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.exports.verdict import is_deployable
from lora_export.report.markup import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.report.facts import Facts

__all__ = ["annotate"]

_LEVELS: Final = {"fail": "error", "ambiguous": "warning", "unverified": "warning"}
_MESSAGE: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_TITLE: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})
_LONGEST: Final = 500


def annotate(facts: Facts) -> list[str]:
    """Return a line for everything that is not a pass; none where all is well."""
    return [
        _line(_LEVELS[verdict], title, message)
        for verdict, title, message in _findings(facts)
        if verdict in _LEVELS
    ]


def _findings(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield verdict, title and message of each graph, adapter and gate."""
    yield from _parity_findings(facts)
    for name, adapter in facts.manifest.adapters.items():
        for note in adapter.notes:
            yield "ambiguous", f"Adapter {name}", note
    for name, row in facts.latency.items():
        yield str(row.get("verdict")), f"Latency of {name}", _reason(row)
    for name, row in facts.fidelity.items():
        if lossy := row.get("lossy"):
            shown = ", ".join(map(str, lossy[:3]))
            message = f"{len(lossy)} tensors lost more than a tenth of the delta: {shown}"
            yield "ambiguous", f"Fidelity of {name}", message
    for row in (facts.bench.get("gate") or {}).get("rows", []):
        title = f"Benchmark of {row['subject']}, {row['cell']}"
        yield str(row["verdict"]), title, _reason(row)


def _parity_findings(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield verdict, title and message of each graph that can be deployed, and of each adapter."""
    for name, record in facts.manifest.graphs.items():
        if not is_deployable(record):
            continue
        row = facts.parity.get(name, {})
        yield record.verification, f"Parity of {name}", _reason(row)
    for name in facts.manifest.adapters:
        if name not in facts.manifest.graphs:
            yield facts.verification(name), f"Parity of {name}", _reason(facts.parity_of(name))


def _reason(row: Mapping[str, Any]) -> str:
    return str(row.get("reason") or "not verified")


def _line(level: str, title: str, message: str) -> str:
    shown, said = clean(title, _LONGEST), clean(message, _LONGEST)
    return f"::{level} title={shown.translate(_TITLE)}::{said.translate(_MESSAGE)}"
