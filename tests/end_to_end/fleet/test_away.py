"""A fleet of tiny models whose rows are done away from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.run import run_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.commands.fleet.worker import perform
from lora_export.core.progress import Silent
from tests.helpers.fleet_exports import assert_equal_exports
from tests.helpers.fleets import InlineExecutor, run_here, tiny_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

MODES = ("merged", "swappable", "batched")


@pytest.fixture
def fleet(tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the fleet of tiny models, one of whose adapters fails."""
    monkeypatch.setenv("LORA_EXPORT_SCRATCH", str(tmp_path / "scratch"))
    variants = [{"mode": mode} for mode in MODES]
    return tiny_fleet(tiny, tmp_path, variants=variants, targets=["cpu", "jetson-orin"])


def run_away(fleet: Path) -> dict[str, Any]:
    """Run a fleet with workers that see the store alone."""
    plan = plan_fleet(load_fleet(fleet), Silent())
    executor = InlineExecutor(perform, jobs=1, is_away=True)
    outcome = run_fleet(plan, executor=executor)
    return {row["id"]: row for row in outcome.table["rows"]} | {"exit": outcome.exit_code}


@pytest.mark.slow
def test_rows_done_away_leave_what_rows_in_place_leave(fleet: Path, tmp_path: Path) -> None:
    here = run_here(fleet)
    (tmp_path / "out").rename(tmp_path / "whole")
    away = run_away(fleet)
    assert {name: row["status"] for name, row in away.items() if name != "exit"} == {
        name: row["status"] for name, row in here.items() if name != "exit"
    }
    assert away["exit"] == here["exit"] == 5
    for mode in MODES:
        assert_equal_exports(
            *(tmp_path / each / "exports/tiny" / mode for each in ("whole", "out"))
        )
    again = run_away(fleet)
    assert {row["status"] for name, row in again.items() if name != "exit"} == {"skipped", "failed"}
