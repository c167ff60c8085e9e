"""A store behind a URL listed, compared and cleaned; the rows only store their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_export.cli import run as run_command
from lora_export.commands.fleet.inventory import collect, compared_with_store, inventory
from lora_export.commands.fleet.run import run_fleet
from lora_export.core.progress import Silent
from lora_export.fleet.store.open_store import home_of, open_store
from tests.helpers.fleets import InlineExecutor, plan_of, row_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty store."""
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "cache"))
    return f"memory://{tmp_path.name}/nightly"


def planned(place: str, *names: str, **more: Any) -> Plan:
    """Return a plan of adapters."""
    rows = (row_of(f"adapter:b/v/{name}", adapter=name, **more) for name in names)
    return plan_of(*rows, store=place)


@pytest.fixture
def plan(place: str, tmp_path: Path) -> Plan:
    """Return a plan of three rows that was run."""
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "weights").write_bytes(b"weights")
    open_store(place).put(
        "c" * 64, tmp_path / "input", ["weights"], kind="input", name="/data/base"
    )
    made = planned(place, "one", "two", "three", inputs={"/data/base": "c" * 64})
    run(made, tmp_path)
    return made


def run(plan: Plan, tmp_path: Path) -> list[str]:
    """Run a plan; return the rows that were done."""

    def perform(task: Mapping[str, Any]) -> dict[str, Any]:
        row = task["row"]
        (tmp_path / "made").write_text(row["id"])
        about = {"status": "done", "verdict": "pass", "provenance": task["provenance"]}
        open_store(task["store"]).put(
            row["key"], tmp_path, ["made"], kind=row["kind"], name=row["id"], about=about
        )
        return {"status": "done"}

    executor = InlineExecutor(perform, is_away=True)
    assert run_fleet(plan, executor=executor, source="fleet.yaml").exit_code == 0
    return executor.done


def test_artifacts_are_listed_with_where_they_are_from(plan: Plan, place: str) -> None:
    store = open_store(place)
    damaged = store.read(plan.rows[2].key)
    assert damaged is not None
    sha256 = damaged.files["made"].sha256
    store._objects.remove([f"blobs/{sha256[:2]}/{sha256}"])
    table = inventory(place)
    assert [(each["id"], each["adapter"], each["status"], each["verdict"])
            for each in table["artifacts"]] == [
        ("adapter:b/v/one", "one", "done", "pass"),
        ("adapter:b/v/three", "three", "missing", "pass"),
        ("adapter:b/v/two", "two", "done", "pass"),
    ]  # fmt: skip
    made = table["artifacts"][0]["made"]
    assert made["inputs"] == {"/data/base": "c" * 64}
    assert made["command"] == "lora-export fleet run fleet.yaml --only adapter:b/v/one"


def test_a_plan_is_compared_with_what_any_machine_has_made(
    plan: Plan, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "another"))
    smaller = planned(place, "one", "two", "four", inputs={"/data/base": "c" * 64})
    table = compared_with_store(smaller)
    assert table["changes"] == {"new": ["adapter:b/v/four"], "gone": ["adapter:b/v/three"]}
    assert table["to_make"] == ["adapter:b/v/four"]
    assert table["unreferenced"]["artifacts"] == [
        {"key": plan.rows[2].key, "name": "adapter:b/v/three"}
    ]
    assert not home_of(place).exists()


def test_what_no_plan_refers_to_is_deleted_with_its_contents(
    plan: Plan, place: str, tmp_path: Path
) -> None:
    store = open_store(place)
    store._objects.write(f"blobs/ab/ab{'0' * 62}", b"broken off")
    smaller = planned(place, "one", "two", inputs={"/data/base": "c" * 64})
    seen = collect(smaller, Silent(), delete=False)
    assert [each["name"] for each in seen["artifacts"]] == ["adapter:b/v/three"]
    assert (seen["blobs"], seen["bytes"]) == (2, len("adapter:b/v/three") + len("broken off"))
    assert len(store.keys()) == 4  # nothing was deleted
    assert collect(smaller, Silent(), delete=True) == {**seen, "deleted": True}
    assert set(store.keys()) == {"c" * 64, *(row.key for row in smaller.rows)}
    assert store.unreferenced() == {}
    assert run(smaller, tmp_path) == []  # what stays is whole
    without_input = planned(place, "one", "two")
    assert [each["name"] for each in collect(without_input, Silent(), delete=False)["artifacts"]
            ] == ["/data/base"]  # fmt: skip


def test_a_directory_that_a_cluster_filled_is_swept_too(tmp_path: Path) -> None:
    whole = planned(str(tmp_path / "store"), "one", "two")
    run(whole, tmp_path)
    smaller = planned(whole.store, "one")
    table = collect(smaller, Silent(), delete=True)
    assert [each["name"] for each in table["artifacts"]] == ["adapter:b/v/two"]
    assert open_store(whole.store).keys() == [smaller.rows[0].key]
    assert open_store(whole.store).unreferenced() == {}


def test_the_commands_take_a_url(
    plan: Plan, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(planned(place, "one", "four").as_bytes())
    assert run_command(["fleet", "ls", place]) == 0
    assert "adapter:b/v/two" in capsys.readouterr().out
    assert run_command(["fleet", "diff", str(file)]) == 0
    said = capsys.readouterr().out
    assert "no longer in the fleet (2): adapter:b/v/three, adapter:b/v/two" in said
    assert "contents that nothing else needs: 3" in said
    assert run_command(["fleet", "diff", place, place]) == 0
    assert run_command(["fleet", "diff", place]) == 2
    capsys.readouterr()
    assert run_command(["fleet", "gc", str(file)]) == 0
    assert "would be deleted; to delete it: --yes" in capsys.readouterr().out
    assert run_command(["fleet", "gc", str(file), "--yes"]) == 0
    assert open_store(place).keys() == [plan.rows[0].key]
