"""``report.html``: one self-contained file, no script; the same facts give the same bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.core.units import size
from lora_export.ondevice.printable import CELL_LIMIT, printable, shell_command
from lora_export.report.facts import named
from lora_export.report.fidelity_section import fidelity
from lora_export.report.latency_section import latency
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import badge, number
from lora_export.report.quantization_section import quantization
from lora_export.report.sections import environment, merged, parity, sizes
from lora_export.report.style import POLICY, STYLE

if TYPE_CHECKING:
    from lora_export.core.reports.parity_report import ParityRow
    from lora_export.report.facts import Facts

__all__ = ["page"]

_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TITLES: Final = {
    "merged": "What was merged", "parity": "Parity", "quantization": "Quantization",
    "fidelity": "Fidelity", "latency": "Latency", "sizes": "Sizes", "environment": "Environment",
}  # fmt: skip
_SAYS: Final = {
    "pass": "Every graph computes what its adapter computes, and every limit is kept.",
    "fail": "A graph failed, or a limit is not kept: see below.",
    "ambiguous": "A result can be neither confirmed nor refuted: see below.",
    "unverified": "Not everything is verified yet: see below.",
}


def page(facts: Facts) -> str:
    """Return the whole page."""
    made = {
        "merged": merged(facts),
        "parity": parity(facts),
        "quantization": quantization(facts),
        "fidelity": fidelity(facts),
        "latency": latency(facts),
        "sizes": sizes(facts),
        "environment": environment(facts),
    }
    base = facts.manifest.base
    shown = {key: each for key, each in made.items() if each is not None}
    links = (tag("li", tag("a", _TITLES[key], href=f"#{key}")) for key in shown)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{named(facts)} on {base.model_class}: {facts.verdict}"),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the report", class_="skip", href="#main"),
        tag(
            "header",
            tag("p", "lora-export report", class_="kicker"),
            tag("h1", f"{named(facts)} on ", _breakable(base.model_class)),
            tag("p", badge(facts.verdict), f" {_SAYS[facts.verdict]}"),
            _made(facts),
            _cards(facts),
            tag("nav", tag("ul", *links), aria_label="Sections"),
        ),
        tag("main", *shown.values(), id="main"),
        tag("footer", tag("p", f"Written by {facts.manifest.tool}."), _ignored(facts)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _made(facts: Facts) -> Markup:
    """Return when the export was verified, and the command that verifies it again."""
    date = facts.environment.date
    command = shell_command(["lora-export", "verify", ".", "--base", facts.manifest.base.source])
    return tag(
        "p",
        f"Verified on {date} with {facts.manifest.tool}. " if date else None,
        "Verify again in the directory of the export: ",
        tag("code", command),
        class_="soft",
    )


def _breakable(name: str) -> Markup:
    """Return the name of a class that may be broken before its capitals."""
    shown = printable(name, CELL_LIMIT)
    return join(part for word in _WORD.split(shown) for part in (tag("wbr"), word))


def _cards(facts: Facts) -> Markup:
    found = [row.metrics.relative_l2 for row in _rows(facts) if row.metrics is not None]
    errors = [error for error in found if error is not None]
    ratios = [row.ratio for row in facts.latency.values() if row.ratio is not None]
    adapters = facts.manifest.adapters.values()
    applied, total = (
        sum(getattr(each, key) for each in adapters) for key in ("tensors_applied", "tensors_total")
    )
    cards = {
        "Adapters": number(len(facts.manifest.adapters)),
        "Tensors applied": f"{applied} of {total}" if total else None,
        "Worst relative L2 error": number(max(errors)) if errors else None,
        "Largest latency ratio": number(max(ratios)) if ratios else None,
        "All files": size(sum(facts.sizes.values())),
    }
    made = (
        tag("div", tag("dt", name), tag("dd", value))
        for name, value in cards.items()
        if value is not None
    )
    return tag("dl", *made, class_="cards")


def _rows(facts: Facts) -> list[ParityRow]:
    graphs = list(facts.parity.values())
    return [*graphs, *(own for row in graphs for own in row.adapters.values())]


def _ignored(facts: Facts) -> Markup:
    return join(tag("p", f"{file} {why}, and was left out.") for file, why in facts.ignored.items())
