"""A row done away from its store: what it needs is fetched, its result put back.

    task      {row, mode, store, ingredients: [{kind, key, …}], inputs, run, tool, versions}
    answer    {status, exit_code, message, …, log}; done: the artifact is in the store

Task and answer are JSON. Nothing else passes between a worker and the run that started it.
"""

from __future__ import annotations

import io
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.adopt import packed_adapter
from lora_export.commands.fleet.row_answers import RowLog, guarded
from lora_export.commands.fleet.row_jobs import run_job
from lora_export.commands.fleet.scratch import Marks, Scratch, default_scratch, mark_of
from lora_export.commands.fleet.tool_versions import require_same_versions
from lora_export.core.files import staging_folder
from lora_export.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    edit_manifest,
    manifest_bytes,
    read_manifest,
    write_manifest,
)
from lora_export.fleet.fleet_plan import Row
from lora_export.fleet.store.open_store import open_store
from lora_export.fleet.store.url import is_url

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.progress import Progress

__all__ = ["perform_stored"]

_LOG_CHARACTERS: Final = 1 << 18


def perform_stored(task: Mapping[str, Any]) -> dict[str, Any]:
    """Run the row of a task; return its answer, whatever happens in it."""
    began = time.monotonic()
    text = io.StringIO()
    row = Row.model_validate(task["row"])
    names: dict[str, str] = {}
    answer = guarded(lambda: _run(row, task, names, RowLog(text)), RowLog(text))
    answer["log"] = text.getvalue()[-_LOG_CHARACTERS:]
    answer["seconds"] = round(time.monotonic() - began, 3)
    told: dict[str, Any] = json.loads(_renamed(json.dumps(answer), names))
    return told


def _run(
    row: Row, task: Mapping[str, Any], names: dict[str, str], progress: Progress
) -> dict[str, Any]:
    """Fetch what a row needs, do it, and store what it made.

    Args:
        row: The row.
        task: See the module.
        names: Filled with the places of inputs on this machine, and those that the plan names.
        progress: Told what happens.
    """
    require_same_versions(
        task["tool"], task["versions"], who="this worker",
        hint="Install one version on all machines.",
    )  # fmt: skip
    scratch = Scratch(default_scratch(), open_store(task["store"]))
    progress.start("fetching what the row needs")
    for path, content in task["inputs"].items():
        names[str(scratch.input_of(path, content))] = path
    here = {path: place for place, path in names.items()}
    job = _relocated(row.job, here)
    # inputs are compared with their hashes when they are fetched
    local = row.model_copy(update={"job": job, "inputs": {}})
    own = {"kind": row.kind, "adapter": row.adapter, "target": row.target, "mode": task["mode"]}
    if row.kind == "export":
        with staging_folder(scratch.root / "new", "export") as tree:
            return _stored(task, row, run_job(local, tree, progress), tree, names)
    tree = scratch.tree_of(task["ingredients"])
    marks = Marks(tree / "marks")
    marks.remove(mark_of(own))
    found = _stored(task, row, run_job(local, tree, progress), tree, names)
    marks.write(mark_of(own), row.key)
    return found


def _stored(
    task: Mapping[str, Any],
    row: Row,
    result: dict[str, Any],
    tree: Path,
    names: Mapping[str, str],
) -> dict[str, Any]:
    """Store what a row has made in a tree; return its result."""
    place, store = tree / row.artifact, open_store(task["store"])
    with staging_folder(tree, "packed") as packed:
        if row.kind == "export":
            _rename_sources(place, names, task["store"], row.artifact)
            files = [*read_manifest(place).files, MANIFEST_NAME]
            folder = place
        elif row.kind == "adapter":
            _rename_sources(place, names, task["store"], row.artifact)
            files, folder = packed_adapter(place, str(row.adapter), packed), packed
        elif row.kind == "engine":
            files, folder = _engine_files(place, row, result), place
        else:
            files, folder = [place.name] if place.is_file() else [], place.parent
        about = {
            "status": "done", **result, "run": task["run"], "mode": task["mode"],
            "provenance": task.get("provenance"),
        }  # fmt: skip
        told = json.loads(_renamed(json.dumps(about), names))
        store.put(row.key, folder, files, kind=row.kind, name=row.id, about=told)
    return result


def _engine_files(export_dir: Path, row: Row, result: Mapping[str, Any]) -> list[str]:
    """Return the plans that a row has built and their records, relative to the export."""
    plans = [file.removeprefix(f"{row.artifact}/") for file in result["files"]]
    stems = tuple(plan.removesuffix(".plan") for plan in plans)
    return [file for file in read_manifest(export_dir).files if file.startswith(stems)]


def _rename_sources(export_dir: Path, names: Mapping[str, str], store: str, artifact: str) -> None:
    """Write the plan's places of inputs into a manifest, in place of those on this machine.

    A manifest names places relative to the export: in a directory relative to where it will be.
    """
    names = {**names, **{
        os.path.relpath(here, export_dir): (
            path if is_url(store) else os.path.relpath(path, os.path.join(store, artifact))  # noqa: PTH118
        )
        for here, path in names.items()
    }}  # fmt: skip
    with edit_manifest(export_dir) as manifest:
        text = manifest_bytes(manifest).decode()
        told = _renamed(text, names)
        if told != text:
            write_manifest(export_dir, Manifest.model_validate_json(told))


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Return JSON with other paths in its texts."""
    for before, after in names.items():
        text = text.replace(json.dumps(before)[1:-1], json.dumps(after)[1:-1])
    return text


def _relocated(value: Any, places: Mapping[str, str]) -> Any:
    """Return JSON values with other paths in place of texts that are a path."""
    if isinstance(value, str):
        return places.get(value, value)
    if isinstance(value, dict):
        return {key: _relocated(each, places) for key, each in value.items()}
    return [_relocated(each, places) for each in value] if isinstance(value, list) else value
