"""A store listed, compared with a plan and cleaned; the rows only write their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_export.cli import run as run_command
from lora_export.commands.fleet.inventory import (
    collect,
    difference,
    inventory,
    state_of_plan,
    state_of_store,
)
from lora_export.commands.fleet.run import run_fleet
from lora_export.core.errors import InputError, UsageError
from lora_export.core.progress import Silent
from lora_export.fleet.store_lock import alone_in
from tests.commands.fleet.test_run import failing, writes
from tests.helpers.fleets import InlineExecutor, plan_of, row_of

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan


def bundles(tmp_path: Path, *names: str, **more: Any) -> Plan:
    """Return a plan of bundles."""
    rows = (row_of(f"bundle:{name}", kind="bundle", artifact=f"bundles/{name}", **more)
            for name in names)  # fmt: skip
    return plan_of(*rows, store=tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Return a plan of three bundles that was run."""
    made = bundles(tmp_path, "one", "two", "three", inputs={"/data/base": "a" * 64})
    run(made)
    return made


def run(plan: Plan, perform: Any = writes) -> None:
    """Run a plan."""
    from pathlib import Path

    (Path(plan.store) / "bundles").mkdir(parents=True, exist_ok=True)
    run_fleet(plan, executor=InlineExecutor(perform), source="fleet.yaml")


def test_a_store_is_listed_with_where_its_artifacts_are_from(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "store" / "bundles" / "two").unlink()
    table = inventory(str(tmp_path / "store"))
    assert [(each["artifact"], each["status"]) for each in table["artifacts"]] == [
        ("bundles/one", "done"), ("bundles/three", "done"), ("bundles/two", "missing"),
    ]  # fmt: skip
    made = table["artifacts"][0]["made"]
    assert made["inputs"] == {"/data/base": "a" * 64}
    assert (made["tool"], made["command"]) == (
        "0", "lora-export fleet run fleet.yaml --only bundle:one",
    )  # fmt: skip


def test_a_row_that_fails_now_is_not_listed_as_what_it_was(plan: Plan, tmp_path: Path) -> None:
    changed = plan.rows[0].model_copy(update={"key": "e" * 64})
    run(plan.model_copy(update={"rows": (changed, *plan.rows[1:])}), failing(5, "bundle:one"))
    ids = [each["id"] for each in inventory(str(tmp_path / "store"))["artifacts"]]
    assert ids == ["bundle:three", "bundle:two"]


def test_a_plan_is_compared_with_its_store(plan: Plan, tmp_path: Path) -> None:
    smaller = bundles(tmp_path, "one", "two", "four", inputs={"/data/base": "a" * 64})
    state = state_of_store(str(tmp_path / "store"))
    found = difference(state, state_of_plan(smaller), plan=smaller)
    assert found["changes"] == {"new": ["bundle:four"], "gone": ["bundle:three"]}
    assert found["to_make"] == ["bundle:four"]
    assert "bundles/three" in found["unreferenced"]["files"]
    assert difference(state, state_of_plan(plan), plan=plan) == {
        "changes": {}, "to_make": [],
        "unreferenced": {"exports": [], "adapters": [], "files": [], "artifacts": [], "blobs": 0,
                         "bytes": 0},
    }  # fmt: skip


def test_what_no_plan_refers_to_is_deleted_when_that_is_asked_for(
    plan: Plan, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    (store / "exports" / "b" / ".v.discarded").mkdir(parents=True)
    smaller = bundles(tmp_path, "one", "two", inputs={"/data/base": "a" * 64})
    before = sorted(path for path in store.rglob("*") if path.is_file())
    seen = collect(smaller, Silent(), delete=False)
    assert sorted(path for path in store.rglob("*") if path.is_file()) == before
    assert seen["exports"] == ["exports/b/.v.discarded"]
    key = plan.rows[2].key
    assert seen["files"] == [f".fleet/results/{key}.json", "bundles/three"]
    done = collect(smaller, Silent(), delete=True)
    assert done == {**seen, "deleted": True}
    left = {path.relative_to(store).as_posix() for path in store.rglob("*")}
    assert "bundles/three" not in left
    assert "exports/b/.v.discarded" not in left
    assert "bundles/one" in left
    assert collect(smaller, Silent(), delete=False)["files"] == []
    executor = InlineExecutor(writes)
    run_fleet(smaller, executor=executor)
    assert executor.done == []  # what stays is whole


def test_a_store_that_is_in_use_is_not_cleaned(plan: Plan, tmp_path: Path) -> None:
    with alone_in(tmp_path / "store"), pytest.raises(UsageError, match="another run"):
        collect(plan, Silent(), delete=False)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the store of a fleet"):
        inventory(str(tmp_path))
    with pytest.raises(InputError, match="is not the store of a fleet"):
        collect(bundles(tmp_path, "one"), Silent(), delete=True)


def test_the_commands_say_it(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, file = str(tmp_path / "store"), tmp_path / "plan.json"
    file.write_bytes(bundles(tmp_path, "one", "four").as_bytes())
    assert run_command(["fleet", "ls", store]) == 0
    assert "bundles/two" in capsys.readouterr().out
    assert run_command(["fleet", "diff", str(file)]) == 0
    assert "no longer in the fleet (2): bundle:three, bundle:two" in capsys.readouterr().out
    assert run_command(["fleet", "diff", store, store]) == 0
    assert "no difference" in capsys.readouterr().out
    assert run_command(["fleet", "diff", store]) == 2
    capsys.readouterr()
    assert run_command(["fleet", "gc", str(file)]) == 0
    assert "would be deleted; to delete it: --yes" in capsys.readouterr().out
    assert (tmp_path / "store" / "bundles" / "two").exists()
    assert run_command(["fleet", "gc", str(file), "--yes", "--json"]) == 0
    assert '"deleted": true' in capsys.readouterr().out
    assert not (tmp_path / "store" / "bundles" / "two").exists()
