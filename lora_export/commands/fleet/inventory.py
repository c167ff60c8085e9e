"""``fleet ls``, ``fleet diff`` and ``fleet gc``: a store looked at, compared and cleaned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.commands.fleet.status import read_status
from lora_export.commands.remove import remove
from lora_export.core.files import resolve_inside, storage_errors
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.results import Results
from lora_export.fleet.run_changes import changes_between, rows_by_id
from lora_export.fleet.store_lock import alone_in
from lora_export.fleet.stored_things import list_store, require_store, unreferenced

if TYPE_CHECKING:
    from lora_export.core.progress import Progress
    from lora_export.fleet.fleet_plan import Plan
    from lora_export.fleet.stored_things import Unreferenced

__all__ = ["collect", "difference", "inventory", "state_of_plan", "state_of_store"]

Rows = dict[str, dict[str, Any]]


def inventory(store: Path) -> dict[str, Any]:
    """Return the artifacts in a store as JSON values.

    Raises:
        InputError: It is no store.
    """
    found = [each.as_json() for each in list_store(store)]
    return {"store": str(store), "artifacts": found, "bytes": sum(each["bytes"] for each in found)}


def state_of_plan(plan: Plan) -> Rows:
    """Return the rows of a plan by name."""
    return {row.id: {"id": row.id, "key": row.key} for row in plan.rows}


def state_of_store(store: Path) -> Rows:
    """Return the rows of the last run of a store by name, with their states.

    Raises:
        InputError: It was never run.
    """
    return rows_by_id(read_status(store))


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
    store, results = Path(plan.store), Results(Path(plan.store))
    done = {row.id for row in plan.rows if (r := results.read(row)) and r.status == "done"}
    table["to_make"] = [row.id for row in plan.rows if row.id not in done]
    if not (store / FLEET_FOLDER).is_dir():
        return table  # it was never run
    table["unreferenced"] = _as_json(unreferenced(store, plan))
    return table


def collect(plan: Plan, progress: Progress, *, delete: bool) -> dict[str, Any]:
    """Find what a plan does not refer to in its store, and delete it where that is asked for.

    Args:
        plan: The whole plan.
        progress: Told what is deleted.
        delete: Whether it is deleted.

    Raises:
        InputError: There is no store.
        UsageError: A run is using it.
        StorageError: The disk refuses.
    """
    store = Path(plan.store)
    require_store(store)
    with alone_in(store):
        found = unreferenced(store, plan)
        if delete:
            _delete(store, found, progress)
    return {"store": str(store), "deleted": delete, **_as_json(found)}


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


def _as_json(found: Unreferenced) -> dict[str, Any]:
    return {
        "exports": found.exports,
        "adapters": [{"export": export, "adapter": name} for export, name in found.adapters],
        "files": found.files,
        "bytes": found.bytes,
    }
