"""Plans on disk: read as they were written, or refused in one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.core.errors import InputError, LoraExportError, UnsupportedError, UsageError
from lora_export.fleet.fleet_plan import Plan, read_plan
from tests.helpers.fleets import plan_of, row_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLAN = plan_of(row_of("base"), row_of("one", needs=("base",)), row_of("two", needs=("base",)))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(PLAN.as_bytes())
    assert read_plan(path) == PLAN
    assert PLAN.as_bytes() == read_plan(path).as_bytes()


def spoil(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the bytes of a plan after a change."""
    table = json.loads(PLAN.as_bytes())
    change(table)
    return json.dumps(table).encode()


BAD = {
    "not JSON": (b"{", "is damaged", InputError),
    "a list": (b"[]", "is damaged", InputError),
    "no rows": (spoil(lambda t: t.pop("rows")), "rows: Field required", InputError),
    "a newer version": (spoil(lambda t: t.update(format_version=2)), "reads 1", UnsupportedError),
    "an unknown key": (spoil(lambda t: t.update(more=1)), "Extra inputs", InputError),
    "a row twice": (spoil(lambda t: t["rows"].append(t["rows"][1])), "there twice", InputError),
    "a wrong order": (spoil(lambda t: t["rows"].reverse()), "not before it", InputError),
    "an artifact outside": (
        spoil(lambda t: t["rows"][0].update(artifact="../x")), "leads out of the store", InputError,
    ),
    "no key": (spoil(lambda t: t["rows"][0].update(key="x")), r"rows\.0\.key", InputError),
    "NaN": (PLAN.as_bytes().replace(b"0.0", b"NaN"), "NaN", InputError),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_plan_is_refused(case: str, tmp_path: Path) -> None:
    raw, message, error = BAD[case]
    path = tmp_path / "plan.json"
    path.write_bytes(raw)
    with pytest.raises(error, match=message) as refused:
        read_plan(path)
    assert isinstance(refused.value, LoraExportError)
    assert "\n" not in refused.value.message


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the plan"):
        read_plan(tmp_path)


def test_some_rows_come_with_those_they_wait_for() -> None:
    assert [row.id for row in PLAN.only(["two"]).rows] == ["base", "two"]
    with pytest.raises(UsageError, match="no row 'tow'") as error:
        PLAN.only(["tow"])
    assert "two" in str(error.value.hint)


def test_ten_thousand_rows_are_checked_at_once() -> None:
    rows = [row_of("base"), *(row_of(f"r{at}", needs=("base",)) for at in range(10_000))]
    assert len(Plan(tool="0", store="s", rows=tuple(rows)).rows) == 10_001
