"""``fleet ls``, ``fleet diff`` and ``fleet gc``: a store looked at, compared and cleaned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.commands.fleet.status import last_report, was_run
from lora_export.commands.remove import remove
from lora_export.core.files import resolve_inside, storage_errors
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.results import Results
from lora_export.fleet.run_changes import changes_between, rows_by_id
from lora_export.fleet.store.open_store import home_of, open_store
from lora_export.fleet.store.url import is_url
from lora_export.fleet.store_lock import alone_in
from lora_export.fleet.stored_artifacts import delete_artifacts, left_artifacts, list_artifacts
from lora_export.fleet.stored_things import (
    Unreferenced,
    list_store,
    require_store,
    unreferenced,
)

if TYPE_CHECKING:
    from lora_export.core.progress import Progress
    from lora_export.fleet.fleet_plan import Plan
    from lora_export.fleet.stored_artifacts import LeftArtifacts

__all__ = [
    "collect",
    "compared_with_store",
    "difference",
    "inventory",
    "state_of_plan",
    "state_of_store",
]

Rows = dict[str, dict[str, Any]]


def inventory(place: str) -> dict[str, Any]:
    """Return the artifacts in a store as JSON values.

    Args:
        place: A directory or a URL.

    Raises:
        InputError: It is no store.
        StorageError: The storage refuses.
    """
    things = list_artifacts(open_store(place)) if is_url(place) else list_store(Path(place))
    found = [each.as_json() for each in things]
    return {"store": place, "artifacts": found, "bytes": sum(each["bytes"] for each in found)}


def state_of_plan(plan: Plan) -> Rows:
    """Return the rows of a plan by name."""
    return {row.id: {"id": row.id, "key": row.key} for row in plan.rows}


def state_of_store(place: str) -> Rows:
    """Return the rows of the last run of a store by name, with their states.

    Args:
        place: A directory or a URL.

    Raises:
        InputError: It was never run.
        StorageError: The storage refuses.
    """
    return rows_by_id(last_report(place))


def compared_with_store(plan: Plan) -> dict[str, Any]:
    """Return what is different between a plan and the last run of its store, as JSON values.

    Raises:
        InputError: The report of the last run is damaged.
        StorageError: The storage refuses.
    """
    last = state_of_store(plan.store) if was_run(plan.store) else {}
    return difference(last, state_of_plan(plan), plan=plan)


def difference(before: Rows, after: Rows, *, plan: Plan | None = None) -> dict[str, Any]:
    """Return what is different as JSON values.

    Args:
        before: Rows by name.
        after: Rows by name.
        plan: A plan whose store is looked at too: what it refers to that is not made yet, and what
            the store holds that it does not refer to.
    """
    table: dict[str, Any] = {"changes": changes_between(before, after)}
    if plan is None:
        return table
    table["to_make"] = _to_make(plan)
    if is_url(plan.store) or (Path(plan.store) / FLEET_FOLDER).is_dir():  # else it was never run
        table["unreferenced"] = _as_json(_files(plan), left_artifacts(open_store(plan.store), plan))
    return table


def collect(plan: Plan, progress: Progress, *, delete: bool) -> dict[str, Any]:
    """Find what a plan does not refer to in its store, and delete it where that is asked for.

    Args:
        plan: The whole plan.
        progress: Told what is deleted.
        delete: Whether it is deleted.

    Raises:
        InputError: There is no store.
        UsageError: A run on this machine is using it.
        StorageError: The storage refuses.
    """
    home, store = home_of(plan.store), open_store(plan.store)
    if is_url(plan.store):
        with storage_errors(str(home)):
            (home / FLEET_FOLDER).mkdir(parents=True, exist_ok=True)
    else:
        require_store(home)
    with alone_in(home):
        files, left = _files(plan), left_artifacts(store, plan)
        if delete:
            if files is not None:
                _delete(home, files, progress)
            if left:
                delete_artifacts(store, left, progress)
    return {"store": plan.store, "deleted": delete, **_as_json(files, left)}


def _to_make(plan: Plan) -> list[str]:
    """Return the rows whose result is not in the store."""
    if is_url(plan.store):
        there = set(open_store(plan.store).keys())
        return [row.id for row in plan.rows if row.key not in there]
    results = Results(Path(plan.store))
    found = ((row.id, results.read(row)) for row in plan.rows)
    return [name for name, result in found if result is None or result.status != "done"]


def _files(plan: Plan) -> Unreferenced | None:
    """Return what a store in a directory holds besides artifacts; None of a URL."""
    return None if is_url(plan.store) else unreferenced(Path(plan.store), plan)


def _delete(store: Path, found: Unreferenced, progress: Progress) -> None:
    for export, name in found.adapters:
        progress.note(f"removing {name} from {export}")
        remove(resolve_inside(store, export), name, progress=progress)
    for export in found.exports:
        progress.note(f"deleting {export}")
        folder = resolve_inside(store, export)
        aside = folder.with_name(f".{folder.name}.discarded")
        with storage_errors(str(folder)):
            if folder != aside and not folder.name.startswith("."):
                shutil.rmtree(aside, ignore_errors=True)
                folder = folder.rename(aside)
            shutil.rmtree(folder)
    for file in found.files:
        with storage_errors(file):
            resolve_inside(store, file).unlink(missing_ok=True)


def _as_json(files: Unreferenced | None, left: LeftArtifacts) -> dict[str, Any]:
    found = files or Unreferenced()
    return {
        "exports": found.exports,
        "adapters": [{"export": export, "adapter": name} for export, name in found.adapters],
        "files": found.files,
        "artifacts": [{"key": key, "name": name} for key, name in left.names.items()],
        "blobs": left.blobs,
        "bytes": found.bytes + left.bytes,
    }
