"""Known vulnerabilities of the locked versions, by pip-audit (`make audit`).

    python -m tools.audit --pip-audit .venv-supply/bin/pip-audit

Every row of the lock files is looked up, those of other Pythons and platforms too. The last line
says what came of it, and the exit code is

0   no known vulnerability, or no advisory source answered: that line then begins with NOT AUDITED;
1   a version with a known vulnerability.

A mirror of a package index often has no advisories: pip-audit then skips every package and finds
nothing, which is not an answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.lock import LOCKS, ROOT, Row, read_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Findings", "audit", "lists_of", "verdict"]

SOURCES: Final = ("pypi", "osv")
"""The advisory sources of pip-audit, in the order in which they are asked."""


@dataclass
class Findings:
    """The answer of an advisory source.

    Attributes:
        vulnerable: A line for each vulnerability.
        audited: Packages that the source knows.
        skipped: Packages that it does not know, or an error in place of an answer.
    """

    vulnerable: list[str] = field(default_factory=list)
    audited: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)


def lists_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows as lists in which each package occurs once, as pip-audit wants them."""
    lists: list[dict[str, Row]] = []
    for row in {(row.name, row.version): row for row in rows}.values():
        free = next((each for each in lists if row.name not in each), None)
        if free is None:
            lists.append(free := {})
        free[row.name] = row
    return [list(each.values()) for each in lists]


def audit(program: Path, source: str, rows: Iterable[Row]) -> Findings:
    """Ask one source about rows, whatever their markers."""
    findings = Findings()
    for number, each in enumerate(lists_of(rows), 1):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"list{number}.txt")
            plain = (Row(row.name, row.version, "", row.hashes).text() for row in each)
            file.write_text("\n".join(plain) + "\n", "utf-8")
            done = subprocess.run(
                [program, "--requirement", file, "--disable-pip", "--require-hashes", "--format",
                 "json", "--progress-spinner", "off", "--vulnerability-service", source],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        _add(findings, each, done.stdout, done.stderr)
    return findings


def _add(findings: Findings, rows: Sequence[Row], answer: str, errors: str) -> None:
    """Add what pip-audit printed about some rows to the findings."""
    try:
        dependencies: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except ValueError:
        last = (errors.strip().splitlines() or ["pip-audit printed nothing"])[-1]
        findings.skipped.update({f"{row.name} {row.version}": last for row in rows})
        return
    versions = {row.name: row.version for row in rows}
    for each in dependencies:
        package = f"{each['name']} {versions.get(each['name'], each.get('version', ''))}"
        if "skip_reason" in each:
            findings.skipped[package] = each["skip_reason"]
            continue
        findings.audited.add(package)
        for found in each["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no release"
            findings.vulnerable.append(f"{package}: {found['id']}, fixed in {fixed}")


def verdict(answers: Sequence[tuple[str, Findings]]) -> tuple[str, int]:
    """Return the text about what the sources answered, and the exit code."""
    answered = [(source, each) for source, each in answers if each.audited]
    if not answered:
        reasons = {
            source: next(iter(each.skipped.values()), "nothing was asked")
            for source, each in answers
        }
        said = "".join(f"{source}: {reason}\n" for source, reason in reasons.items())
        return f"{said}NOT AUDITED: no advisory source answers from here; nothing is known.", 0
    vulnerable = sorted({line for _, each in answered for line in each.vulnerable})
    audited = set().union(*(each.audited for _, each in answered))
    unknown = sorted({name for _, each in answered for name in each.skipped} - audited)
    lines = [*vulnerable, *(f"not audited: {name}" for name in unknown)]
    count = f"{len(audited)} packages, {len(unknown)} unknown to {answered[0][0]}"
    if vulnerable:
        return "\n".join([*lines, f"audit: {len(vulnerable)} known vulnerabilities in {count}"]), 1
    return "\n".join([*lines, f"audit: no known vulnerability in {count}"]), 0


def main() -> None:
    """Audit the lock files; stop at the first source that answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pip-audit", type=Path, default=Path("pip-audit"))
    program: Path = parser.parse_args().pip_audit
    paths = [*(ROOT / name for name in LOCKS), *sorted((ROOT / "tools/locks").glob("*.lock"))]
    rows = [row for path in paths for row in read_lock(path)]
    answers = []
    for source in SOURCES:
        answers.append((source, audit(program, source, rows)))
        if answers[-1][1].audited:
            break
    text, code = verdict(answers)
    print(text)
    sys.exit(code)


if __name__ == "__main__":
    main()
