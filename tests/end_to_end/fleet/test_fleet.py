"""A fleet of tiny models, from ``fleet.yaml`` to its exports, and what a second run does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.inventory import collect
from lora_export.commands.fleet.run import run_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.commands.fleet.worker import perform
from lora_export.core.manifest import read_manifest
from lora_export.core.progress import Silent
from tests.helpers.fleet_exports import assert_equal_exports
from tests.helpers.fleets import InlineExecutor, run_here, scale, tiny_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

VARIANTS = [{"mode": "merged"}, {"mode": "swappable"}, {"mode": "batched"}]


@pytest.fixture
def fleet(tiny: TinyModels, tmp_path: Path) -> Path:
    """Return a fleet of two good adapters, one without an effect, one of another base."""
    other = tiny.adapter(tiny.base("llama", "text-generation"), task="text-generation",
                         labels_count=None)  # fmt: skip
    shutil.copytree(other, tmp_path / "adapters" / "misfit")
    return tiny_fleet(tiny, tmp_path, variants=VARIANTS, targets=["cpu", "jetson-orin"])


def states(rows: dict[str, Any], kind: str) -> dict[str, str]:
    """Return the states of the rows of a kind by what follows it."""
    return {
        name.partition(":")[2]: row["status"] for name, row in rows.items()
        if name.startswith(kind)
    }  # fmt: skip


def test_a_fleet_is_built_and_exactly_the_planted_failures_are_named(fleet: Path) -> None:
    rows = run_here(fleet)
    modes = ("merged", "swappable", "batched")
    for mode in modes:
        assert states(rows, f"adapter:tiny/{mode}") == {
            f"tiny/{mode}/one": "done", f"tiny/{mode}/two": "done",
            f"tiny/{mode}/idle": "failed", f"tiny/{mode}/misfit": "failed",
        }  # fmt: skip
        assert rows[f"adapter:tiny/{mode}/idle"]["exit_code"] == 5
        assert "effect" in rows[f"adapter:tiny/{mode}/idle"]["message"]
        assert rows[f"adapter:tiny/{mode}/misfit"]["exit_code"] == 3
        assert rows[f"bundle:tiny/{mode}@jetson-orin"]["status"] == "done"
        manifest = read_manifest(fleet.parent / "out" / "exports" / "tiny" / mode)
        assert list(manifest.adapters) == ["one", "two"]
        assert rows[f"adapter:tiny/{mode}/one"]["verdict"] == "pass"
        assert rows[f"adapter:tiny/{mode}/one"]["measures"]["relative_l2"] < 1e-5
    assert rows["exit"] == 5
    logs = [path.read_text() for path in (fleet.parent / "out" / ".fleet" / "logs").iterdir()]
    assert sum("parity of base" in each for each in logs) == len(modes)  # once for each export

    again = run_here(fleet)  # nothing but what failed is tried
    assert [name for name, row in again.items() if name != "exit" and row["status"] == "done"] == []

    scale(fleet.parent / "adapters" / "two", 3.0)
    shutil.rmtree(fleet.parent / "adapters" / "idle")
    changed = run_here(fleet)
    for mode in modes:
        assert changed[f"export:tiny/{mode}"]["status"] == "skipped"
        assert changed[f"adapter:tiny/{mode}/one"]["status"] == "skipped"
        assert changed[f"adapter:tiny/{mode}/two"]["status"] == "done"
        assert changed[f"bundle:tiny/{mode}@jetson-orin"]["status"] == "done"
    assert changed["exit"] == 3

    shutil.rmtree(fleet.parent / "adapters" / "one")  # it stays in its exports until gc
    plan = plan_fleet(load_fleet(fleet), Silent())
    assert collect(plan, Silent(), delete=False)["adapters"] == [
        {"export": f"exports/tiny/{mode}", "adapter": "one"} for mode in sorted(modes)
    ]
    collect(plan, Silent(), delete=True)
    for mode in modes:
        manifest = read_manifest(fleet.parent / "out" / "exports" / "tiny" / mode)
        assert list(manifest.adapters) == ["two"]
    last = run_here(fleet)
    for mode in modes:
        assert last[f"adapter:tiny/{mode}/two"]["status"] == "skipped"


def test_inputs_that_change_under_a_plan_are_noticed(fleet: Path) -> None:
    plan = plan_fleet(load_fleet(fleet), Silent())
    row = "adapter:tiny/merged/one"
    scale(fleet.parent / "adapters" / "one", 7.0)
    outcome = run_fleet(plan.only([row]), executor=InlineExecutor(perform, jobs=1))
    found = {each["id"]: each for each in outcome.table["rows"]}
    assert found[row]["status"] == "failed"
    assert "has changed since the plan was made" in found[row]["message"]
    assert outcome.exit_code == 3


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_artifacts(
    fleet: Path, tmp_path: Path
) -> None:
    shutil.rmtree(fleet.parent / "adapters" / "misfit")
    shutil.rmtree(fleet.parent / "adapters" / "idle")
    run_here(fleet)
    (tmp_path / "out").rename(tmp_path / "whole")
    command = [sys.executable, "-m", "lora_export", "fleet", "run", str(fleet), "--jobs", "2"]
    for seconds in (2.0, 4.0, 6.0, 9.0):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
            time.sleep(seconds)
            one.kill()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for mode in ("merged", "swappable", "batched"):
        first, second = (
            read_manifest(tmp_path / name / "exports" / "tiny" / mode) for name in ("whole", "out")
        )
        assert _artifacts(first.files) == _artifacts(second.files)
        assert [each.model_dump() for each in first.adapters.values()] == [
            second.adapters[name].model_dump() for name in first.adapters
        ]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_kills_at_fifty_random_moments_change_nothing(tiny: TinyModels, tmp_path: Path) -> None:
    variants = [{"mode": "merged"}, {"mode": "swappable"}]
    fleet = tiny_fleet(tiny, tmp_path, variants=variants, targets=["cpu", "jetson-orin"])
    shutil.rmtree(tmp_path / "adapters" / "idle")
    script = [sys.executable, "-m", "tests.helpers.killed_runs", str(fleet), "27", "50"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == 50
    whole = tmp_path / "whole-0"
    for other in (tmp_path / f"whole-{at}" for at in range(1, found["wholes"])):
        for mode in ("merged", "swappable"):
            assert_equal_exports(*(each / "exports" / "tiny" / mode for each in (whole, other)))
            bundle = f"bundles/tiny-{mode}-jetson-orin.tar"
            assert (whole / bundle).read_bytes() == (other / bundle).read_bytes()


def _artifacts(files: dict[str, str]) -> dict[str, str]:
    """Return files but for the reports, which name the day."""
    return {name: each for name, each in files.items() if not name.startswith("reports/")}
