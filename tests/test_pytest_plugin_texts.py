"""Foreign names in the output of the pytest plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.pytest_plugin import _conclude, _Settings


def test_findings_are_lines_with_nothing_hidden() -> None:
    told: list[str] = []
    settings = _Settings(Path(), strict=False, update=False, defaults={}, tell=told.append,
                         test="", written={})  # fmt: skip
    with pytest.raises(pytest.fail.Exception) as failure:
        _conclude([("pass", "a\x1b[2J"), ("fail", "b\n::error::c\u202e")], settings)
    assert told == [r"a\x1b[2J", r"b\n::error::c\u202e"]
    assert str(failure.value) == r"b\n::error::c\u202e"
