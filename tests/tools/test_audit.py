"""`make audit`: vulnerabilities fail, and a source that does not answer is never "none found"."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tools.audit import Findings, audit, lists_of, verdict
from tools.lock import LOCKS, ROOT, Row, read_lock

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [Row("a", "1", "", ("0" * 64,)), Row("b", "2", "", ("1" * 64,))]


def fake(folder: Path, answer: object, *, code: int = 0, errors: str = "") -> Path:
    program = folder / "pip-audit"
    printed = answer if isinstance(answer, str) else json.dumps(answer)
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint({printed!r})\n"
        f"print({errors!r}, file=sys.stderr)\nsys.exit({code})\n"
    )
    program.chmod(0o755)
    return program


def judged(program: Path) -> tuple[str, int]:
    return verdict([("pypi", audit(program, "pypi", ROWS))])


def test_a_known_vulnerability_fails_with_its_number_and_the_version_that_is_fixed(tmp_path):
    found = {"id": "PYSEC-2026-1", "fix_versions": ["1.1"], "aliases": [], "description": "…"}
    answer = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [found]},
            {"name": "b", "version": "2", "vulns": []},
        ]
    }
    text, code = judged(fake(tmp_path, answer, code=1))
    assert code == 1
    assert text.splitlines() == [
        "a 1: PYSEC-2026-1, fixed in 1.1",
        "audit: 1 known vulnerabilities in 2 packages, 0 unknown to pypi",
    ]


def test_packages_that_the_source_does_not_know_are_named(tmp_path):
    answer = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": []},
            {"name": "b", "skip_reason": "not found"},
        ]
    }
    text, code = judged(fake(tmp_path, answer))
    assert code == 0
    assert text.splitlines() == [
        "not audited: b 2",
        "audit: no known vulnerability in 1 packages, 1 unknown to pypi",
    ]


@pytest.mark.parametrize(
    ("answer", "errors", "reason"),
    [
        ({"dependencies": [{"name": "a", "skip_reason": "not on the mirror"}]}, "", "not on the"),
        ("", "Traceback …\nConnectionError: no name", "ConnectionError: no name"),
        ("", "", "pip-audit printed nothing"),
    ],
)
def test_no_answer_is_said_and_is_not_a_green_audit(tmp_path, answer, errors, reason):
    text, code = judged(fake(tmp_path, answer, errors=errors))
    assert code == 0
    assert text.splitlines()[-1].startswith("NOT AUDITED: no advisory source answers from here")
    assert reason in text
    assert "no known vulnerability" not in text


def test_nothing_asked_is_not_audited():
    assert verdict([("pypi", Findings())])[0].splitlines()[-1].startswith("NOT AUDITED")


def test_every_locked_version_is_asked_for_whatever_its_marker():
    rows = [row for name in LOCKS for row in read_lock(ROOT / name)]
    lists = lists_of(rows)
    assert all(len({row.name for row in each}) == len(each) for each in lists)
    asked = {(row.name, row.version) for each in lists for row in each}
    assert asked == {(row.name, row.version) for row in rows}
