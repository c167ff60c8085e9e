"""Exports and bundles laid out in a directory, from the artifacts of a store.

exports/BASE/VARIANT/        the export's artifact, and in it the adapters and engines
bundles/…                    as they are
.fleet/marks/BASE/VARIANT/   the keys of what is there, so that only what changed is fetched
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.bundle.packing import require_replaceable
from lora_export.commands.fleet.remains import remove_others
from lora_export.commands.fleet.scratch import Marks, add_ingredients
from lora_export.commands.fleet.workplaces import discard
from lora_export.core.errors import InputError
from lora_export.core.files import (
    move_into_place,
    resolve_inside,
    staging_folder,
    storage_errors,
)
from lora_export.core.json_file import parse_json
from lora_export.core.manifest import is_export
from lora_export.core.modes import Mode
from lora_export.fleet.content import FLEET_FOLDER
from lora_export.fleet.fleet_report import REPORT_JSON
from lora_export.fleet.row_place import place_of
from lora_export.report.refresh_report import refresh_report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.fleet.store.artifacts import Artifact, ArtifactStore

__all__ = ["assemble", "stored_rows"]

_LIMIT_BYTES: Final = 1 << 30
_GOOD: Final = frozenset({"done", "skipped"})


def assemble(store: ArtifactStore, rows: Sequence[Mapping[str, Any]], root: Path) -> list[Path]:
    """Lay out what rows have made; return the exports and bundles.

    Args:
        store: The store.
        rows: The rows that succeeded, in the order of their plan: ``kind``, ``key``, ``base``,
            ``variant``, ``adapter``, ``target``, ``artifact`` and ``mode`` of each.
        root: The directory.

    Raises:
        StorageError: An artifact is missing or damaged, or the disk refuses.
    """
    made = []
    for first in (row for row in rows if row["kind"] == "export"):
        export_dir = resolve_inside(root, first["artifact"])
        marks = Marks(root / FLEET_FOLDER / "marks" / first["base"] / first["variant"])
        if marks.of("export") != first["key"] or not is_export(export_dir):
            discard(export_dir)
            marks.clear()
            with staging_folder(export_dir.parent, "export") as staging:
                store.get(first["key"], staging / "whole")
                with storage_errors(str(export_dir)):
                    (staging / "whole").rename(export_dir)
            marks.write("export", first["key"])
        same = [
            row for row in rows
            if (row["base"], row["variant"]) == (first["base"], first["variant"])
            and row["kind"] in {"adapter", "engine"}
        ]  # fmt: skip
        remove_others(export_dir, {row["adapter"] for row in same if row["kind"] == "adapter"})
        add_ingredients(store, export_dir, [first, *same], marks)
        refresh_report(export_dir)
        made.append(export_dir)
    return made + [_bundle(store, row, root) for row in rows if row["kind"] == "bundle"]


def _bundle(store: ArtifactStore, row: Mapping[str, Any], root: Path) -> Path:
    target = resolve_inside(root, row["artifact"])
    with staging_folder(target.parent, "bundle") as staging:
        store.get(row["key"], staging / "whole")
        require_replaceable(target)
        with storage_errors(str(target)):
            move_into_place(staging / "whole" / target.name, target)
    return target


def stored_rows(store: ArtifactStore) -> list[dict[str, Any]]:
    """Return the rows of the last run of a store that succeeded, as `assemble` takes them.

    Raises:
        InputError: No run has ended there, or its report is damaged.
    """
    raw = store.get_document(REPORT_JSON, _LIMIT_BYTES)
    hint = "Run the fleet to its end: lora-export fleet run FLEET.yaml"
    if raw is None:
        msg = f"the store {store.place!r} has no {REPORT_JSON}"
        raise InputError(msg, hint=hint)
    try:
        rows = parse_json(raw)["rows"]
        good = [row for row in rows if row["status"] in _GOOD]
        places = [place_of(row) for row in good]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{REPORT_JSON} of the store {store.place!r} is damaged: {error}"
        raise InputError(msg, hint=hint) from error
    return [{**place.model_dump(), "mode": _mode_of(store.read(place.key))} for place in places]


def _mode_of(artifact: Artifact | None) -> str:
    mode = artifact.about.get("mode") if artifact is not None else None
    return mode if isinstance(mode, str) else Mode.MERGED
