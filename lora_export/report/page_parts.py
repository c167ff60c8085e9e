"""Building blocks of sections: badges, numbers, tables that scroll on a phone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.report.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "DASH",
    "Column",
    "badge",
    "count",
    "difference",
    "facts_list",
    "number",
    "scrolling",
    "section",
    "short",
    "state_badge",
    "table",
]

_SIGNS: Final = {"pass": "✓", "fail": "✗", "ambiguous": "~", "unverified": "?", "ungated": "·"}
_STATES: Final = {
    "done": ("✓", "pass"), "skipped": ("✓", "pass"), "failed": ("✗", "fail"),
    "blocked": ("–", "ambiguous"), "running": ("…", "unverified"), "waiting": ("…", "unverified"),
}  # fmt: skip
_STACKED: Final = 4
"""Tables with as many columns show a row as a list on a phone."""
_SMALL: Final = 1e-3
_LARGE: Final = 1e5
DASH: Final = "–"


@dataclass(frozen=True)
class Column:
    """The head of a column; `kind` is ``n`` for numbers, ``long`` for text, ``name``."""

    title: str
    kind: str | None = None


def badge(verdict: str) -> Markup:
    """Return a verdict as a word with a sign, not by colour alone."""
    known = verdict if verdict in _SIGNS else "unverified"
    return tag("span", f"{_SIGNS[known]} {verdict}", class_=f"badge {known}")


def state_badge(state: str) -> Markup:
    """Return the state of a row of a fleet as a word with a sign."""
    sign, class_ = _STATES.get(state, ("?", "unverified"))
    return tag("span", f"{sign} {state}", class_=f"badge {class_}")


def number(value: object, digits: int = 3) -> str:
    """Return a number in few characters.

    >>> number(1.5e-07), number(0.98765), number(None)
    ('1.50e-07', '0.988', '–')
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and not _SMALL <= abs(value) < _LARGE:
        return f"{value:.2e}"
    return f"{value:,.{digits}f}"


def difference(found: float | None, interval: tuple[float, float] | None) -> str:
    """Return the difference of two scores with its interval; nothing is +0.

    >>> difference(-0.0125, (-0.025, -1e-9))
    '-0.0125 [-0.0250, +0.0000]'
    """
    if found is None or interval is None:
        return DASH
    value, low, high = (round(each, 4) + 0.0 for each in (found, *interval))
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def count(amount: int, noun: str) -> str:
    """Return a number of things.

    >>> count(1, "adapter"), count(2, "adapter")
    ('1 adapter', '2 adapters')
    """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def short(digest: str) -> str:
    """Return the beginning of a hash."""
    return f"{digest[:12]}…"


def table(
    caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], *, limit: int = 500
) -> Markup:
    """Return a table whose first cells are the heads of their rows, in a box that scrolls.

    Args:
        caption: What it shows.
        columns: Their heads.
        rows: Their cells: text or markup.
        limit: More rows than this are counted, not shown.
    """
    given = list(rows)
    body = []
    for row in given[:limit]:
        head, *cells = row
        body.append(
            tag(
                "tr",
                tag("th", head, scope="row"),
                *(
                    tag("td", cell, class_=column.kind, data_label=column.title)
                    for cell, column in zip(cells, columns[1:], strict=True)
                ),
            )
        )
    heads = (tag("th", each.title, scope="col", class_=each.kind) for each in columns)
    whole = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *body),
        class_="stack" if len(columns) >= _STACKED else None,
    )  # fmt: skip
    more = len(given) - limit
    note = tag("p", f"{count(more, 'more row')} not shown.", class_="soft") if more > 0 else None
    return join([scrolling(whole, caption), note])


def scrolling(inner: Markup, label: str) -> Markup:
    """Return a box that scrolls by itself where the page is narrow, reachable by keyboard."""
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=label)


def facts_list(rows: Mapping[str, Any]) -> Markup:
    """Return names and values; those without one are left out."""
    pairs = ((name, value) for name, value in rows.items() if value not in {None, ""})
    return tag(
        "dl", *(part for n, v in pairs for part in (tag("dt", n), tag("dd", v))), class_="facts"
    )


def section(key: str, title: str, *children: Markup | None) -> Markup:
    """Return a section of the page."""
    return tag("section", tag("h2", title, id=key), join(children), aria_labelledby=key)
