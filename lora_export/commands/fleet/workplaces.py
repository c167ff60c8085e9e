"""The place where rows of a fleet are done: in the directory of the store, or away from it.

in place    workers write into the store's directory, each file where it belongs
away        workers fetch what they need and put results back (`away.AwayFromStore`)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any, Protocol

from lora_export.core.errors import LoraExportError, StorageError
from lora_export.core.files import resolve_inside, storage_errors
from lora_export.core.manifest import is_export
from lora_export.fleet.content import CONTENT_FILE, ContentHashes
from lora_export.fleet.intact import files_of_all, first_damage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_export.fleet.fleet_plan import Plan, Row
    from lora_export.fleet.results import Results, RowResult

__all__ = ["InPlace", "Workplace", "discard"]


class Workplace(Protocol):
    """A place where rows are done.

    Attributes:
        is_away: Whether workers keep what they make in the store as artifacts.
    """

    is_away: bool

    @property
    def home(self) -> Path:
        """The directory of reports, results and logs."""

    def kept(
        self, plan: Plan, results: Results, note: Callable[[str], None]
    ) -> dict[str, RowResult]:
        """Return the results of rows whose artifacts are whole; make way for the others."""

    def task(self, row: Row, results: Results, is_good: Callable[[str], bool]) -> dict[str, Any]:
        """Return a row as a task for a worker.

        Args:
            row: The row.
            results: Where its log goes.
            is_good: Whether a row has succeeded.

        Raises:
            LoraExportError: An input cannot be had; the row fails with it.
        """

    def landed(self, row: Row) -> dict[str, Any] | None:
        """Return the answer of a row that was done, though its worker died before it said so."""

    def finish(self, good: Sequence[Row], *, whole: bool) -> None:
        """Complete what users see, after the last row."""


class InPlace:
    """Rows done in the directory of the store.

    Args:
        home: The directory.
    """

    is_away = False

    def __init__(self, home: Path) -> None:
        self.home = home

    def kept(
        self, plan: Plan, results: Results, note: Callable[[str], None]
    ) -> dict[str, RowResult]:
        """Return the results of rows whose artifact is in the store as it was made; forget others.

        An export whose base is damaged is removed with all that is in it: it is made again.
        """
        hashes = ContentHashes(self.home / CONTENT_FILE)
        kept: dict[str, RowResult] = {}
        lost: set[str] = set()
        for row in plan.rows:
            result = results.read(row)
            if result is None or result.status != "done":
                continue
            gone = lost & set(row.needs)
            damage = None if gone else self._damage(row, result, hashes)
            if damage is None and not gone:
                kept[row.id] = result
                continue
            lost.add(row.id)
            results.forget(row)
            note(f"{row.id} is made again: {damage or 'what it needs is'}")
        with contextlib.suppress(StorageError):  # only slower next time
            hashes.save()
        for row in plan.rows:
            if row.kind == "export" and row.id not in kept:
                discard(resolve_inside(self.home, row.artifact))
        return kept

    def task(self, row: Row, results: Results, is_good: Callable[[str], bool]) -> dict[str, Any]:  # noqa: ARG002
        """Return a row as a task for a worker."""
        log = str(results.log_of(row))
        return {"row": row.model_dump(mode="json"), "store": str(self.home), "log": log}

    def landed(self, row: Row) -> dict[str, Any] | None:  # noqa: ARG002
        """Return None: what was begun is begun again."""
        return None

    def finish(self, good: Sequence[Row], *, whole: bool) -> None:
        """Do nothing: everything is in its place."""

    def _damage(self, row: Row, result: RowResult, hashes: ContentHashes) -> str | None:
        """Return what is wrong with what a row made; of an export also with what rows share."""
        files: dict[str, str] = dict(result.files)
        if row.kind == "export":
            try:
                files |= files_of_all(self.home, row.artifact)
            except LoraExportError as error:
                return error.message
        outside: Mapping[str, str] = result.outside
        return first_damage(self.home, files, hashes, outside=outside)


def discard(folder: Path) -> None:
    """Remove an export from the store, renamed first: half of it is never seen.

    Raises:
        StorageError: Something else than an export is there, or the disk refuses.
    """
    if not os.path.lexists(folder):
        return
    with storage_errors(str(folder)):
        foreign = folder.is_symlink() or not folder.is_dir()
        if foreign or (not is_export(folder) and any(folder.iterdir())):
            msg = f"{str(folder)!r} is in the way: it is not an export"
            raise StorageError(msg, hint="Move it away, then run again.")
    aside = folder.with_name(f".{folder.name}.discarded")
    with storage_errors(str(folder)):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)
