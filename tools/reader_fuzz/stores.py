"""Readers of what the store of a fleet holds: records, blobs, results, hashes, reports."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.assembly import stored_rows
from lora_export.commands.fleet.scratch import Marks, mark_of
from lora_export.core.errors import LoraExportError
from lora_export.fleet.content import ContentHashes
from lora_export.fleet.fleet_plan import Estimate, Row, key_of
from lora_export.fleet.results import Provenance, Results, RowResult, result_from
from lora_export.fleet.store.artifacts import Artifact, ArtifactStore, StoredFile
from lora_export.fleet.store.directory import DirectoryObjects
from lora_export.fleet.stored_artifacts import list_artifacts
from lora_export.fleet.stored_things import list_store
from tools.reader_fuzz.mutate_bytes import mutate_bytes
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["STORES"]

_KEY: Final = "a" * 64
_BLOB: Final = b"what a file holds"
_NAMES: Final = ("x/one.bin", "two.json")
_PLACE: Final[dict[str, Any]] = {"kind": "export", "key": _KEY, "base": "b", "variant": "v",
                 "artifact": "exports/b/v"}  # fmt: skip


def _artifact(fixed: Path) -> Target:
    """Return the reader of a record and of the blob that it names."""
    sha256 = hashlib.sha256(_BLOB).hexdigest()
    stored = StoredFile(sha256=sha256, bytes=len(_BLOB))
    made = Artifact(key=_KEY, kind="adapter", name="n", files=dict.fromkeys(_NAMES, stored),
                    about={"status": "done", "mode": "merged", "file": "a"})  # fmt: skip
    store = ArtifactStore(DirectoryObjects(fixed / "store"))

    def read(folder: Path) -> None:
        for name, place in (("record", f"artifacts/{_KEY}.json"),
                            ("blob", f"blobs/{sha256[:2]}/{sha256}")):  # fmt: skip
            (fixed / "store" / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).replace(fixed / "store" / place)
        artifact = store.read(_KEY)
        store.unreferenced()
        list_artifacts(store)
        if artifact is not None:
            list(store.damaged([artifact]))
            _ = artifact.bytes
        store.get(_KEY, folder / "out")

    seed = {"record": made.model_dump_json().encode(), "blob": _BLOB}
    return Target((seed,), {"record": (mutate_json,), "blob": (mutate_bytes,)}, read)


def _row() -> Row:
    none = Estimate(memory_bytes=1, disk_bytes=1, seconds=1.0)
    return Row(id="a", needs=(), job={}, estimate=none, **{**_PLACE, "key": key_of(a=1)})


def _results(_fixed: Path) -> Target:
    """Return the reader of the result of a row, and of a worker's answer."""
    row = _row()
    origin = Provenance(
        id="a", kind="adapter", base="b", variant="v", adapter="one", artifact="exports/b/v",
        inputs={"/x": _KEY}, needs={"b": _KEY}, tool="0", versions={"onnx": "1"}, command="c",
        date="2026",
    )  # fmt: skip
    result = RowResult(
        key=row.key, status="done", verdict="pass", measures={"bytes": 1.0, "gain": 0.5},
        files={"exports/b/v/x": _KEY}, outside={"/x": _KEY}, notes=["n"], provenance=origin,
    )  # fmt: skip

    def read(folder: Path) -> None:
        place = folder / ".fleet" / "results"
        place.mkdir(parents=True)
        data = (folder / "result").read_bytes()
        (folder / "result").replace(place / f"{row.key}.json")
        list_store(folder)
        if Results(folder).read(row) is None:
            answer = RowResult.model_validate_json(data)  # as a worker would send it
            result_from(answer.model_dump(), row)

    seed = {"result": result.model_dump_json().encode()}
    return Target((seed,), {"result": (mutate_json,)}, read)


def _contents(fixed: Path) -> Target:
    """Return the reader of remembered hashes and of marks: what is damaged counts as not there."""
    file = fixed / "x"
    file.write_bytes(b"1")
    status = file.stat()
    table = {str(file): [status.st_size, status.st_mtime_ns, status.st_ino, _KEY]}

    def read(folder: Path) -> None:
        hashes = ContentHashes(folder / "content.json")
        hashes.of_file(file)
        hashes.save()
        marks = Marks(folder)
        if marks.of("mark") != _KEY:
            marks.write("mark", _KEY)
            msg = "another mark"
            raise ValueError(msg)

    seed = {"content.json": json.dumps(table).encode(), "mark": _KEY.encode()}
    return Target((seed,), {"content.json": (mutate_json,), "mark": (mutate_bytes,)}, read)


def _rows(fixed: Path) -> Target:
    """Return the reader of the report in a store, whose rows `fleet fetch` lays out."""
    rows: list[dict[str, Any]] = [
        {"id": "e", "status": "done", "exit_code": 0, **_PLACE},
        {"id": "a", "status": "skipped", **_PLACE, "kind": "adapter", "adapter": "one"},
        {"id": "t", "status": "done", **_PLACE, "kind": "engine", "target": "cpu"},
    ]
    store = ArtifactStore(DirectoryObjects(fixed))

    def read(folder: Path) -> None:
        (folder / "report.json").replace(fixed / "report.json")
        for row in stored_rows(store):
            mark_of(row)

    seed = {"report.json": json.dumps({"rows": rows}).encode()}
    return Target((seed,), {"report.json": (mutate_json,)}, read)


_ERRORS: Final = (LoraExportError, ValueError)
"""Errors of readers whose callers say what is to be done: a record that is none is not there."""

STORES: Final[Mapping[str, Reader]] = {
    "store-artifact": Reader(_artifact, slowness=4),
    "store-result": Reader(_results, errors=_ERRORS),
    "store-hashes": Reader(_contents, errors=_ERRORS),
    "store-report": Reader(_rows),
}
"""The readers of stores."""
