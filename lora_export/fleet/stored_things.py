"""The artifacts in a store, as its results and manifests name them, and what no plan refers to."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import InputError, LoraExportError
from lora_export.core.manifest import is_export, read_manifest
from lora_export.exports.verdict import verification_of
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.results import Results, log_file

if TYPE_CHECKING:
    from lora_export.fleet.fleet_plan import Plan
    from lora_export.fleet.results import RowResult

__all__ = ["StoredThing", "Unreferenced", "list_store", "require_store", "unreferenced"]

EXPORTS: Final = "exports"
BUNDLES: Final = "bundles"


@dataclass(frozen=True)
class StoredThing:
    """An artifact in a store.

    Attributes:
        kind: The kind of the row that made it; ``adapter`` too for one in an export that no result
            tells of.
        id: The row that made it; empty where no result tells.
        artifact: Its place, relative to the store.
        adapter: The adapter, of one in an export.
        status: ``done``; ``missing``, where a file is gone; ``unknown``, where no result tells.
        verdict: The verdict on an adapter.
        bytes: What its files take.
        made: What it was made of, by which tool and command, and when; None where no result tells.
    """

    kind: str
    id: str
    artifact: str
    adapter: str | None
    status: str
    verdict: str | None
    bytes: int
    made: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Unreferenced:
    """The things in a store that a plan does not refer to.

    Attributes:
        exports: Export directories, relative to the store.
        adapters: Adapters in exports of the plan: the export, and the name.
        files: Bundles, results and logs of earlier plans, leftovers of runs that were killed.
        bytes: What all of them take.
    """

    exports: list[str] = field(default_factory=list)
    adapters: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    bytes: int = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.exports) + len(self.adapters) + len(self.files)


def require_store(store: Path) -> None:
    """Require that a directory is the store of a fleet.

    Raises:
        InputError: It is not.
    """
    if not (store / FLEET_FOLDER).is_dir():
        msg = f"{str(store)!r} is not the store of a fleet"
        raise InputError(msg, hint="Give the key store of a fleet that was run.")


def list_store(store: Path) -> list[StoredThing]:
    """Return the artifacts in a store by name; of those of one row the newest.

    Args:
        store: The directory of the fleet.

    Raises:
        InputError: It is no store.
    """
    require_store(store)
    newest: dict[str, RowResult] = {}
    for result in Results(store).all():
        origin = result.provenance
        if origin is None:
            continue
        known = newest.get(origin.id)
        if known is None or known.provenance is None or known.provenance.date <= origin.date:
            newest[origin.id] = result
    found = [_thing(store, result) for result in newest.values() if result.status == "done"]
    told = {(each.artifact, each.adapter) for each in found}
    for folder in _exports(store):
        artifact = folder.relative_to(store).as_posix()
        found += [
            StoredThing("adapter", "", artifact, name, "unknown", verdict, 0, None)
            for name, verdict in _adapters_in(folder).items()
            if (artifact, name) not in told
        ]
    return sorted(found, key=lambda each: (each.artifact, each.kind, each.adapter or "", each.id))


def _thing(store: Path, result: RowResult) -> StoredThing:
    origin = result.provenance
    assert origin is not None  # noqa: S101  (the caller looked)
    places = [store / file for file in result.files] + [Path(file) for file in result.outside]
    whole = all(os.path.lexists(path) for path in places)
    return StoredThing(
        kind=origin.kind,
        id=origin.id,
        artifact=origin.artifact,
        adapter=origin.adapter,
        status="done" if whole else "missing",
        verdict=result.verdict,
        bytes=int(result.measures.get("bytes", 0)),
        made=origin.made_of(),
    )


def unreferenced(store: Path, plan: Plan) -> Unreferenced:
    """Return what is in a store that a plan does not refer to.

    Args:
        store: The directory of the fleet.
        plan: The whole plan.

    Raises:
        InputError: It is no store.
    """
    require_store(store)
    exports = {row.artifact for row in plan.rows if row.kind == "export"}
    members = {(row.artifact, row.adapter) for row in plan.rows if row.kind == "adapter"}
    bundles = {row.artifact for row in plan.rows if row.kind == "bundle"}
    keys = {row.key for row in plan.rows}
    gone, adapters = [], []
    for folder in _exports(store):
        name = folder.relative_to(store).as_posix()
        if name not in exports:
            gone.append(name)
            continue
        adapters += [(name, each) for each in _adapters_in(folder) if (name, each) not in members]
    files = [
        path.relative_to(store).as_posix()
        for path in (store / BUNDLES).glob("*")
        if not path.is_dir() and path.relative_to(store).as_posix() not in bundles
    ]
    files += [_result_file(key) for key in _keys_in(store, "results", ".json") - keys]
    files += [log_file(key) for key in _keys_in(store, "logs", ".log") - keys]
    sizes = sum(_size(store / each) for each in (*gone, *files))
    return Unreferenced(sorted(gone), sorted(adapters), sorted(files), sizes)


def _exports(store: Path) -> list[Path]:
    """Return the export directories in a store, and what a killed run has set aside."""
    places = sorted((store / EXPORTS).glob("*/*"))
    folders = [each for each in places if not each.is_symlink() and each.is_dir()]
    return [each for each in folders if is_export(each) or each.name.startswith(".")]


def _adapters_in(folder: Path) -> dict[str, str]:
    """Return the adapters of an export, with their verdicts; none of what cannot be read."""
    if not is_export(folder):
        return {}
    try:
        manifest = read_manifest(folder)
    except LoraExportError:
        return {}
    return {name: verification_of(manifest, name) for name in manifest.adapters}


def _keys_in(store: Path, folder: str, suffix: str) -> set[str]:
    return {path.stem for path in (store / FLEET_FOLDER / folder).glob(f"*{suffix}")}


def _result_file(key: str) -> str:
    return f"{FLEET_FOLDER}/results/{key}.json"


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
    return path.lstat().st_size
