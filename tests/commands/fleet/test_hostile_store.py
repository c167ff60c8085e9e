"""Stores of strangers: names in their reports and records stay inside, what is no export stays."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.fleet.fetch import fetch_fleet
from lora_export.commands.fleet.inventory import collect
from lora_export.commands.fleet.scratch import Scratch
from lora_export.commands.fleet.status import read_status
from lora_export.commands.fleet.workplaces import discard
from lora_export.core.errors import InputError, LoraExportError, StorageError
from lora_export.core.progress import Silent
from lora_export.fleet.content import content_of
from lora_export.fleet.run_changes import changes_between, rows_by_id
from lora_export.fleet.store.artifacts import ArtifactStore
from lora_export.fleet.store.directory import DirectoryObjects
from lora_export.fleet.store.open_store import open_store
from lora_export.fleet.stored_things import list_store
from tests.helpers.fleets import plan_of

if TYPE_CHECKING:
    from pathlib import Path

KEY = "a" * 64
ROW: dict[str, Any] = {
    "id": "export:b/v", "kind": "export", "status": "done", "key": KEY, "base": "b",
    "variant": "v", "adapter": None, "target": None, "artifact": "exports/b/v",
}  # fmt: skip


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a folder of the user beside the one that a fleet is fetched into."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "letter.txt").write_text("mine")
    return tmp_path / "victim"


def stored(folder: Path, *rows: object) -> Path:
    """Write a store with a report of `rows`, and a file under the key of the export."""
    (folder / "made").mkdir()
    (folder / "made" / "file").write_text("x")
    store = open_store(str(folder / "store"))
    store.put(KEY, folder / "made", ["file"], kind="export", name="n")
    (folder / "report.json").write_text(json.dumps({"rows": rows}))
    store.put_document(folder / "report.json", "report.json")
    return folder / "store"


@pytest.mark.parametrize(
    "change",
    [
        {"base": "../../../victim"}, {"base": "..", "variant": ".."}, {"base": "/victim"},
        {"variant": "../../../../victim"}, {"base": "x/y"}, {"base": ""}, {"base": 5},
        {"artifact": "../victim"}, {"artifact": "."}, {"artifact": ""}, {"artifact": "letters"},
        {"artifact": "exports/b"}, {"key": "../victim"}, {"key": [1]}, {"kind": "x"},
        {"kind": "adapter", "adapter": "../../victim"}, {"target": "../victim"}, {"base": "a\0b"},
    ],
)  # fmt: skip
def test_a_name_in_a_report_does_not_leave_the_folder(
    change: dict[str, Any], tmp_path: Path, victim: Path
) -> None:
    row = {**ROW, **change}
    row = {**row, **{k: str(v).replace("/victim", str(victim)) for k, v in change.items()
                     if str(v).startswith("/")}}  # fmt: skip
    place = stored(tmp_path, row)
    with pytest.raises(InputError, match=r"report\.json of the store .* is damaged"):
        fetch_fleet(str(place), tmp_path / "out", Silent())
    assert (victim / "letter.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "table", [[], 5, "x", {}, {"rows": 5}, {"rows": [5]}, {"rows": [{**ROW, "base": 5}]}]
)
def test_a_report_of_another_shape_is_named(table: object, tmp_path: Path) -> None:
    place = stored(tmp_path)
    (place / ".fleet" / "report.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="is damaged"):
        fetch_fleet(str(place), tmp_path / "out", Silent())


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_export_is_not_replaced(kind: str, tmp_path: Path, victim: Path) -> None:
    place, there = stored(tmp_path, ROW), tmp_path / "out" / "exports" / "b" / "v"
    there.parent.mkdir(parents=True)
    if kind == "link":
        there.symlink_to(victim)
    elif kind == "file":
        there.write_text("mine")
    else:
        victim.rename(there)
    with pytest.raises(LoraExportError, match=r"is in the way|leaves|outside"):
        fetch_fleet(str(place), tmp_path / "out", Silent())
    assert there.is_symlink() or (there if kind == "file" else there / "letter.txt").read_text()


def test_a_bundle_does_not_replace_another_file(tmp_path: Path) -> None:
    row = {**ROW, "kind": "bundle", "target": "cpu", "artifact": "file"}
    place = stored(tmp_path, row)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    with pytest.raises(LoraExportError, match="is not a bundle"):
        fetch_fleet(str(place), tmp_path / "out", Silent())
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_an_empty_folder_and_an_absent_one_make_way(tmp_path: Path) -> None:
    discard(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    discard(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("named", ["{victim}", "../../../../victim", "..", "other", 5, None])
def test_an_input_is_the_one_that_its_key_names(named: Any, tmp_path: Path, victim: Path) -> None:
    store = ArtifactStore(DirectoryObjects(tmp_path / "store"))
    about = {"file": named.format(victim=victim) if isinstance(named, str) else named}
    store.put(KEY, victim, ["letter.txt"], kind="input", name="base.gguf", about=about)
    with pytest.raises(StorageError, match="has another content"):
        Scratch(tmp_path / "scratch", store).input_of("base.gguf", KEY)
    assert (victim / "letter.txt").read_text() == "mine"


def test_inputs_whose_content_is_their_key_are_taken(tmp_path: Path, victim: Path) -> None:
    store = ArtifactStore(DirectoryObjects(tmp_path / "store"))
    sha256 = hashlib.sha256(b"mine").hexdigest()
    whole, files = content_of({"letter.txt": sha256}), ["letter.txt"]
    store.put(whole, victim, files, kind="input", name="x")
    store.put(sha256, victim, files, kind="input", name="x", about={"file": "letter.txt"})
    scratch = Scratch(tmp_path / "scratch", store)
    assert (scratch.input_of("x", whole) / "letter.txt").read_text() == "mine"
    assert scratch.input_of("letter.txt", sha256).read_text() == "mine"


ROW_SHOWN = {"id": "a", "status": "done", "exit_code": 0, "message": "", "key": KEY}
ROWS: dict[str, Any] = {"counts": {"done": 1}, "rows": [ROW_SHOWN], "running": False, "store": "s"}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [5]}, {"rows": {}}, {"rows": [{}]}, {"counts": []}, {"counts": {"done": "x"}},
        {"running": "no"}, {"store": 5}, {"seconds_left": "soon"},
        {"rows": [{**ROW_SHOWN, "status": []}]},
        {"rows": [{**ROW_SHOWN, "status": "failed", "exit_code": []}]},
        {"rows": [{**ROW_SHOWN, "message": None}]},
        {"rows": [{**ROW_SHOWN, "key": {}}]},
    ],
)  # fmt: skip
def test_a_report_that_is_shown_or_compared_has_its_types(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(json.dumps({**ROWS, **change}))
    with pytest.raises(InputError, match="is not the report of a fleet"):
        read_status(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(ROWS))
    assert changes_between(rows_by_id(read_status(tmp_path)), {}) == {"gone": ["a"]}


@pytest.mark.parametrize("number", ["1e400", "Infinity", "NaN", "-1e999"])
def test_a_result_without_a_size_is_none(number: str, tmp_path: Path) -> None:
    origin = {"id": "a", "kind": "adapter", "base": "b", "variant": "v", "artifact": "x",
              "tool": "0", "command": "c", "date": "d"}  # fmt: skip
    table = {"key": KEY, "status": "done", "measures": {"bytes": 1}, "provenance": origin}
    file = tmp_path / ".fleet" / "results" / f"{KEY}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(table))
    assert [each.id for each in list_store(tmp_path)] == ["a"]
    file.write_text(json.dumps(table).replace('"bytes": 1', f'"bytes": {number}'))
    assert list_store(tmp_path) == []


def test_what_a_fleet_did_not_make_is_not_collected(tmp_path: Path, victim: Path) -> None:
    store = tmp_path / "store"
    (store / ".fleet").mkdir(parents=True)
    (store / "exports" / "mine").mkdir(parents=True)
    (store / "bundles" / "folder").mkdir(parents=True)
    victim.rename(store / "exports" / "mine" / "letters")
    (store / "exports" / "mine" / ".old.discarded").mkdir()
    found = collect(plan_of(store=store), Silent(), delete=True)
    assert (found["exports"], found["files"]) == (["exports/mine/.old.discarded"], [])
    assert (store / "exports" / "mine" / "letters" / "letter.txt").read_text() == "mine"
