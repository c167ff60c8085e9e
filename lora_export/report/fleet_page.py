"""The report of a fleet on one page, drawn from the values of ``report.json`` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.units import size
from lora_export.report.markup import Markup, join, tag
from lora_export.report.page_parts import (
    DASH,
    Column,
    badge,
    count,
    number,
    section,
    state_badge,
    table,
)
from lora_export.report.style import POLICY, STYLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["fleet_page"]

_MINUTE: Final = 60
_HOUR: Final = 3600
_LISTED: Final = 12
_MOST: Final = 2000
"""More adapters than this are counted, not shown; ``report.json`` has all."""

_WORST: Final = {"failed": 0, "blocked": 1, "running": 2, "waiting": 3}
_VERDICTS: Final = {"fail": 0, "unverified": 1, "ambiguous": 2}
_CHANGES: Final = {
    "failing": "Failed, and did not before",
    "mended": "Failed before, and does not any more",
    "verdict": "With another verdict",
    "changed": "Made of other inputs or settings",
    "new": "New",
    "gone": "No longer in the fleet",
}
_TITLES: Final = {
    "failures": "Failures", "changes": "Since the last run", "adapters": "Adapters and targets",
    "others": "Exports, engines, bundles", "environment": "Environment",
}  # fmt: skip


def fleet_page(report: Mapping[str, Any]) -> str:
    """Return the whole page.

    Args:
        report: The values of ``report.json``.
    """
    made = {
        "failures": _failures(report),
        "changes": _changes(report),
        "adapters": _adapters(report),
        "others": _others(report),
        "environment": _environment(report),
    }
    shown = {key: each for key, each in made.items() if each is not None}
    links = (tag("li", tag("a", _TITLES[key], href=f"#{key}")) for key in shown)
    verdict, said = _verdict(report)
    title = _title(report)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: {verdict}"),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the report", class_="skip", href="#main"),
        tag(
            "header",
            tag("p", "lora-export fleet report", class_="kicker"),
            tag("h1", title),
            tag("p", badge(verdict), f" {said}"),
            _made(report),
            _cards(report),
            tag("nav", tag("ul", *links), aria_label="Sections"),
        ),
        tag("main", *shown.values(), id="main"),
        tag("footer", tag("p", f"Written by lora-export {report['tool']}.")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _title(report: Mapping[str, Any]) -> str:
    lines = report["adapters"]
    adapters = {(each["base"], each["adapter"]) for each in lines if each["adapter"]}
    bases = {each["base"] for each in lines}
    return f"{count(len(adapters), 'adapter')} on {count(len(bases), 'base')}"


def _verdict(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return the verdict on the whole run, and a sentence."""
    counts = report["counts"]
    bad, left = counts.get("failed", 0), counts.get("waiting", 0) + counts.get("running", 0)
    if bad:
        blocked = counts.get("blocked", 0)
        more = f", and {count(blocked, 'row')} that need them could not be made" if blocked else ""
        return "fail", f"{count(bad, 'row')} failed{more}. Everything else is in the store."
    if left:
        return "unverified", f"{count(left, 'row')} are still to be made."
    verdicts = {each.get("verdict") for each in report["adapters"] if each["adapter"]}
    if verdicts & {"ambiguous", "unverified"}:
        return "ambiguous", "Everything was made; not every adapter is verified without doubt."
    return "pass", "Everything is made, and every adapter is verified."


def _made(report: Mapping[str, Any]) -> Markup:
    command = f"lora-export fleet run {report['source']}"
    return tag(
        "p", f"{report['date']}, in {_duration(report.get('seconds'))}, store ",
        tag("code", report["store"]), ". Run again: ", tag("code", command), class_="soft",
    )  # fmt: skip


def _cards(report: Mapping[str, Any]) -> Markup:
    lines, counts = report["adapters"], report["counts"]
    ratios = _figures(lines, "latency_ratio")
    gains = _figures(lines, "gain")
    errors = _figures(lines, "relative_l2")
    cards = {
        "Rows": f"{sum(counts.values()):,}",
        "Made now": f"{counts.get('done', 0):,}",
        "Up to date": f"{counts.get('skipped', 0):,}",
        "Failed": f"{counts.get('failed', 0):,}",
        "Blocked": f"{counts['blocked']:,}" if counts.get("blocked") else None,
        "Worst relative L2 error": number(max(errors)) if errors else None,
        "Smallest gain": number(min(gains)) if gains else None,
        "Largest latency ratio": number(max(ratios)) if ratios else None,
        "Bytes": size(sum(int((row.get("measures") or {}).get("bytes", 0))
                          for row in report["rows"])),
    }  # fmt: skip
    made = (tag("div", tag("dt", name), tag("dd", value)) for name, value in cards.items() if value)
    return tag("dl", *made, class_="cards")


def _figures(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    found = ((each.get("measures") or {}).get(name) for each in lines)
    return [value for value in found if isinstance(value, (int, float))]


def _failures(report: Mapping[str, Any]) -> Markup | None:
    """Return the rows that failed, the worst first, each with its message and next command."""
    rows = {row["id"]: row for row in report["rows"]}
    failed = [rows[name] for name in report["failures"]]
    blocked = [row["id"] for row in report["rows"] if row["status"] == "blocked"]
    if not failed and not blocked:
        return None
    columns = [Column("row"), Column("exit code", "n"), Column("message", "long"),
               Column("next command", "long"), Column("log", "long")]  # fmt: skip
    cells = [
        [
            row["id"], str(row["exit_code"]), _lines(row["message"]),
            tag("code", row.get("next") or DASH), tag("code", row.get("log") or DASH),
        ]
        for row in failed
    ]  # fmt: skip
    return section(
        "failures", _TITLES["failures"],
        table("Rows that failed, the worst exit code first", columns, cells) if cells else None,
        _listed("Blocked, because what they need failed", blocked),
    )  # fmt: skip


def _lines(message: str) -> Markup:
    """Return a message with its hint on a line of its own."""
    first, *rest = message.split("\n")
    return join([first, *(part for line in rest for part in (tag("br"), line))])


def _listed(title: str, names: Sequence[str]) -> Markup | None:
    if not names:
        return None
    shown = join(tag("li", tag("code", name)) for name in names[:_LISTED])
    rest = tag("p", f"and {len(names) - _LISTED:,} more", class_="soft") if len(names) > _LISTED \
        else None  # fmt: skip
    return join([tag("h3", f"{title} ({len(names):,})"), tag("ul", shown), rest])


def _changes(report: Mapping[str, Any]) -> Markup | None:
    changes = report.get("changes")
    if not changes:
        return None
    found = [_listed(title, changes.get(kind) or []) for kind, title in _CHANGES.items()]
    shown = [each for each in found if each is not None]
    said = f"The run before ended on {changes.get('since') or 'an unknown day'}."
    same = tag("p", "Nothing is different.") if not shown else None
    return section("changes", _TITLES["changes"], tag("p", said, class_="soft"), same, *shown)


def _adapters(report: Mapping[str, Any]) -> Markup | None:
    """Return a table of adapters by targets for each base in a variant."""
    exports: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in report["adapters"]:
        exports.setdefault((line["base"], line["variant"]), []).append(line)
    if not exports:
        return None
    tables = [
        join([tag("h3", f"{base}, {variant}"), _table_of(f"{base}, {variant}", lines)])
        for (base, variant), lines in exports.items()
    ]
    return section("adapters", _TITLES["adapters"], *tables)


def _table_of(name: str, lines: Sequence[Mapping[str, Any]]) -> Markup:
    targets = list(dict.fromkeys(target for line in lines for target in line["targets"]))
    figures = {
        "relative L2": "relative_l2", "gain": "gain", "loss": "loss",
        "latency ratio": "latency_ratio",
    }  # fmt: skip
    shown = {title: key for title, key in figures.items() if _figures(lines, key)}
    columns = [
        Column("adapter"), Column("verdict"), *(Column(each) for each in targets),
        *(Column(each, "n") for each in shown), Column("bytes", "n"), Column("seconds", "n"),
    ]  # fmt: skip
    cells = [
        [
            line["adapter"] or "no adapter",
            badge(line["verdict"]) if line.get("verdict") else DASH,
            *(_state(line["targets"].get(target)) for target in targets),
            *(number((line.get("measures") or {}).get(key)) for key in shown.values()),
            size(line["bytes"]) if line["bytes"] else DASH,
            number(float(line["seconds"]), 1) if line["seconds"] else DASH,
        ]
        for line in sorted(lines, key=_badness)
    ]
    return table(f"Adapters of {name}, by target", columns, cells, limit=_MOST)


def _state(cell: Mapping[str, Any] | None) -> Markup | str:
    return state_badge(cell["status"]) if cell else DASH


def _badness(line: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return what sorts the worst first."""
    states = [_WORST.get(cell["status"], 9) for cell in line["targets"].values()]
    verdict = _VERDICTS.get(line.get("verdict") or "", 9)
    return (min([_WORST.get(line["status"], 9), *states]), verdict, str(line["adapter"]))


def _others(report: Mapping[str, Any]) -> Markup | None:
    rows = [row for row in report["rows"] if row["kind"] != "adapter"]
    if not rows:
        return None
    columns = [Column("row"), Column("status"), Column("artifact", "long"), Column("bytes", "n"),
               Column("seconds", "n")]  # fmt: skip
    cells = [
        [
            row["id"], state_badge(row["status"]), tag("code", row["artifact"]),
            size(int(row["measures"]["bytes"])) if (row.get("measures") or {}).get("bytes")
            else DASH,
            number(float(row["seconds"]), 1) if row.get("seconds") else DASH,
        ]
        for row in sorted(rows, key=lambda row: (_WORST.get(row["status"], 9), row["id"]))
    ]  # fmt: skip
    return section("others", _TITLES["others"], table("Rows besides adapters", columns, cells))


def _environment(report: Mapping[str, Any]) -> Markup:
    versions = {"lora-export": report["tool"], **(report.get("versions") or {})}
    columns = [Column("package"), Column("version")]
    shown = table("Versions that the results depend on", columns, list(versions.items()))
    return section("environment", _TITLES["environment"], shown)


def _duration(seconds: object) -> str:
    """Return a time for people.

    >>> _duration(75.2), _duration(3.21), _duration(7300)
    ('1 min 15 s', '3.2 s', '2 h 1 min')
    """
    if not isinstance(seconds, (int, float)):
        return "an unknown time"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
