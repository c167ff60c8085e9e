"""Wrong fleets, plans and stores: each ends with its exit code and its sentence."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from lora_export.cli import run as run_command
from lora_export.commands.fleet import tool_versions
from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.run import run_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.commands.fleet.worker import perform
from lora_export.core.progress import Silent
from lora_export.fleet.store.open_store import open_store
from tests.helpers.fleets import InlineExecutor, run_here, scale, tiny_fleet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.helpers.models import TinyModels

ONE = "adapter:tiny/merged/one"
TWO = "adapter:tiny/merged/two"


@pytest.fixture
def fleet(tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fleet of two good adapters."""
    monkeypatch.setenv("LORA_EXPORT_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "cache"))
    found = tiny_fleet(tiny, tmp_path)
    shutil.rmtree(tmp_path / "adapters" / "idle")
    return found


def changed(fleet: Path, **keys: Any) -> Path:
    """Give a fleet other keys."""
    fleet.write_text(yaml.safe_dump({**yaml.safe_load(fleet.read_text()), **keys}))
    return fleet


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "adapters/none-*"}, "adapters.1 has the path 'adapters/none-*': nothing matches"),
        ({"path": "adapters/*", "exclude": "*"}, "all 2 of them are excluded"),
        ({"path": "adapters/two", "name": "one"}, "two adapters of the base 'tiny' are called"),
    ],
)
def test_a_fleet_that_cannot_be_meant(
    entry: dict[str, str], said: str, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = [*yaml.safe_load(fleet.read_text())["adapters"], {"base": "tiny", **entry}]
    assert run_command(["fleet", "run", str(changed(fleet, adapters=adapters))]) == 3
    assert said in capsys.readouterr().err
    assert not (fleet.parent / "out").exists()


def test_a_base_that_changes_under_a_running_plan(fleet: Path) -> None:
    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        if task["row"]["id"] == ONE:
            path = fleet.parent / "base" / "config.json"
            path.write_text(path.read_text() + "\n")
        return perform(task)

    plan = plan_fleet(load_fleet(fleet), Silent())
    outcome = run_fleet(plan, executor=InlineExecutor(work, jobs=1))
    rows = {row["id"]: row for row in outcome.table["rows"]}
    assert outcome.exit_code == 3
    assert {name: row["status"] for name, row in rows.items()} == {
        "export:tiny/merged": "done", ONE: "failed", TWO: "failed",
    }  # fmt: skip
    assert (
        f"{str(fleet.parent / 'base')!r} has changed since the plan was made"
        in (rows[ONE]["message"])
    )
    assert "lora-export fleet plan" in rows[ONE]["message"]


def test_a_store_that_is_no_directory(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet.parent / "out").write_text("a file")
    assert run_command(["fleet", "run", str(fleet)]) == 3
    assert str(fleet.parent / "out") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"format_version": 2}, 4, "has format_version 2; this reads 1"),
        ({"tool": "0.0.9"}, 4, "the plan was made with 0.0.9"),
        ({"versions": {"torch": "1.0"}}, 4, "the plan was made with 1.0"),
        ({"rows": [{"id": "x"}]}, 3, "is damaged: rows.0"),
    ],
)
def test_a_plan_of_another_version(
    keys: dict[str, Any], code: int, said: str, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fleet.parent / "plan.json"
    table = json.loads(plan_fleet(load_fleet(fleet), Silent()).as_bytes())
    file.write_text(json.dumps({**table, **keys}))
    assert run_command(["fleet", "run", str(file)]) == code
    found = capsys.readouterr().err
    assert said in found
    assert "lora-export fleet plan" in found or "Upgrade" in found
    assert not (fleet.parent / "out" / "exports").exists()


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (None, 7, "this worker does not have torch, which the plan was made with"),
        ("1.0", 4, "this worker has torch 1.0, the plan was made with"),
    ],
)
def test_a_worker_without_the_extra(
    found: str | None, code: int, said: str, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_fleet(load_fleet(changed(fleet, store="memory://extra")), Silent())
    known = tool_versions.installed_version
    monkeypatch.setattr(
        tool_versions, "installed_version", lambda name: found if name == "torch" else known(name)
    )
    outcome = run_fleet(plan, executor=InlineExecutor(perform, jobs=1))
    first, *others = outcome.table["rows"]
    assert (first["status"], first["exit_code"], outcome.exit_code) == ("failed", code, code)
    assert said in first["message"]
    assert "nstall" in first["message"]
    assert {row["status"] for row in others} == {"blocked"}


def away(fleet: Path) -> tuple[dict[str, Any], int]:
    """Run a fleet whose workers see the store alone; return its rows and its exit code."""
    plan = plan_fleet(load_fleet(fleet), Silent())
    outcome = run_fleet(plan, executor=InlineExecutor(perform, jobs=1))
    return {row["id"]: row for row in outcome.table["rows"]}, outcome.exit_code


@pytest.mark.slow
def test_a_store_that_keeps_other_bytes_and_one_that_is_damaged_later(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://{tmp_path.name}"
    changed(fleet, store=place)
    honest = MemoryFileSystem.put_file

    def lies(self: Any, source: str, target: str, **more: Any) -> None:
        honest(self, source, target, **more)
        if source.endswith("base/model.safetensors"):  # the size is right, the last byte is not
            data = self.cat_file(target)
            self.pipe_file(target, data[:-1] + bytes([data[-1] ^ 1]))

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", lies)
        rows, code = away(fleet)
    assert (rows["export:tiny/merged"]["status"], code) == ("failed", 3)
    assert f"in the store '{place}' has another content" in rows["export:tiny/merged"]["message"]

    rows, code = away(fleet)  # what lied was removed: it is stored again
    assert code == 0, [row["message"] for row in rows.values()]
    store = open_store(place)
    artifact = store.read(rows[TWO]["key"])  # one is in the export: it brings the base its head
    assert artifact is not None
    sha256 = artifact.files["weights/two.safetensors"].sha256
    store._objects.write(f"blobs/{sha256[:2]}/{sha256}", b"short")
    rows, code = away(fleet)
    done = [name for name, row in rows.items() if row["status"] == "done"]
    assert (done, code) == ([TWO], 0)


@pytest.mark.slow
def test_an_adapter_that_int4_loses(fleet: Path) -> None:
    changed(fleet, variants=[{"mode": "merged", "quantize": "int4"}])
    scale(fleet.parent / "adapters" / "two", 0.02)
    rows = run_here(fleet)
    row = rows["adapter:tiny/merged-int4/two"]
    assert (row["status"], row["exit_code"], rows["exit"]) == ("failed", 5, 5)
    assert "quantization of two: fail" in row["message"]
