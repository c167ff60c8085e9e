"""The differences between two runs or plans."""

from __future__ import annotations

from lora_export.fleet.run_changes import changes_between, rows_by_id


def test_each_kind_of_change_is_named() -> None:
    before = {
        "same": {"key": "1", "status": "done", "verdict": "pass"},
        "gone": {"key": "2", "status": "done"},
        "other": {"key": "3", "status": "done", "verdict": "pass"},
        "broken": {"key": "4", "status": "skipped"},
        "mended": {"key": "5", "status": "failed"},
    }
    after = {
        "same": {"key": "1", "status": "skipped", "verdict": "pass"},
        "other": {"key": "33", "status": "done", "verdict": "ambiguous"},
        "broken": {"key": "4", "status": "failed"},
        "mended": {"key": "5", "status": "done"},
        "new": {"key": "6", "status": "done"},
    }
    assert changes_between(before, after) == {
        "new": ["new"], "gone": ["gone"], "changed": ["other"], "failing": ["broken"],
        "mended": ["mended"], "verdict": ["other"],
    }  # fmt: skip
    assert changes_between(after, after) == {}


def test_rows_of_a_plan_have_no_status() -> None:
    assert changes_between({"a": {"key": "1", "status": "failed"}}, {"a": {"key": "1"}}) == {}


def test_what_is_no_row_is_left_out() -> None:
    assert rows_by_id({"rows": [{"id": "a"}, {"id": 3}, "x", None]}) == {"a": {"id": "a"}}
    assert rows_by_id({"rows": "abc"}) == {}
    assert rows_by_id({}) == {}
