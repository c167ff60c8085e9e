"""Rows done away from their store: inputs go into it, workers fetch from it and put results back.

inputs        CONTENT → artifact of kind ``input``, stored once
a row done    KEY → artifact, whose record has the row's result
at the end    a directory gets the exports as a local run leaves them; see `assembly`
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.fleet.assembly import assemble
from lora_export.core.errors import InputError, StorageError
from lora_export.core.version import VERSION
from lora_export.fleet.content import CONTENT_FILE, ContentHashes, content_of, files_below
from lora_export.fleet.fleet_report import REPORT_HTML, REPORT_JSON, REPORT_MARKDOWN
from lora_export.fleet.results import RowResult, result_from
from lora_export.fleet.store.open_store import home_of, open_store
from lora_export.fleet.store.url import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.fleet.fleet_plan import Plan, Row
    from lora_export.fleet.results import Results
    from lora_export.fleet.store.artifacts import Artifact

__all__ = ["AwayFromStore"]

_HINT: Final = "Make the plan again: lora-export fleet plan"


class AwayFromStore:
    """See `lora_export.commands.fleet.workplaces.Workplace`.

    Args:
        plan: The plan, whose store it is.
        progress: Told what is stored.

    Raises:
        MissingRuntimeError: The library of the store's protocol is not installed.
        StorageError: The store cannot be opened.
    """

    is_away = True

    def __init__(self, plan: Plan, note: Callable[[str], None]) -> None:
        self.home = home_of(plan.store)
        self._plan, self._note = plan, note
        self._store = open_store(plan.store)
        self._hashes = ContentHashes(self.home / CONTENT_FILE)
        self._inputs = {path: each for row in plan.rows for path, each in row.inputs.items()}
        self._there: set[str] = set()
        self._run = uuid.uuid4().hex
        self._modes = {
            (row.base, row.variant): str(row.job["recipe"].get("mode") or "merged")
            for row in plan.rows
            if row.kind == "export" and "recipe" in row.job
        }
        self._before = _predecessors(plan)

    def kept(
        self, plan: Plan, results: Results, note: Callable[[str], None]
    ) -> dict[str, RowResult]:
        """Return the results of rows whose artifacts are in the store, each with its bytes."""
        keys = set(self._store.keys())
        rows = [row for row in plan.rows if row.key in keys]
        read = self._store.read_all({row.key for row in rows})
        found = {row.id: read[row.key] for row in rows if row.key in read}
        damaged = {each.key: said for each, said in self._store.damaged(list(found.values()))}
        kept: dict[str, RowResult] = {}
        for row in rows:
            if row.key in damaged:
                note(f"{row.id} is made again: {damaged[row.key]}")
                self._store.delete(row.key)
                results.forget(row)
            elif (artifact := found.get(row.id)) is not None:
                own = results.read(row)
                with contextlib.suppress(ValueError):  # a record of something else
                    kept[row.id] = own if own is not None and own.status == "done" else (
                        result_from(artifact.about, row)
                    )  # fmt: skip
        return kept

    def task(self, row: Row, results: Results, is_good: Callable[[str], bool]) -> dict[str, Any]:  # noqa: ARG002
        """Return a row as a task for a worker; its inputs are in the store then."""
        texts = _texts_in(row.job)
        inputs = {path: each for path, each in self._inputs.items() if path in texts}
        for path, content in inputs.items():
            self._push(path, content)
        before = self._before(row)
        return {
            "row": row.model_dump(mode="json"),
            "mode": self._mode(row),
            "store": self._plan.store,
            "ingredients": [self._ingredient(each) for each in before if is_good(each.id)],
            "inputs": inputs,
            "run": self._run,
            "tool": VERSION,
            "versions": self._plan.versions,
        }

    def landed(self, row: Row) -> dict[str, Any] | None:
        """Return the answer of a row whose artifact this run has stored already."""
        artifact = self._store.read(row.key)
        if artifact is None or artifact.about.get("run") != self._run:
            return None
        return dict(artifact.about)

    def finish(self, good: Sequence[Row], *, whole: bool) -> None:
        """Lay exports and bundles out in a directory; behind a URL, store the report."""
        self._hashes.save()
        if not is_url(self._plan.store):
            rows = [self._ingredient(each) for each in good]
            assemble(self._store, rows, self.home)
        elif whole:
            for name in (REPORT_JSON, REPORT_MARKDOWN, REPORT_HTML):
                if (self.home / name).is_file():
                    self._store.put_document(self.home / name, name)

    def _ingredient(self, row: Row) -> dict[str, Any]:
        own = ("id", "kind", "key", "base", "variant", "adapter", "target", "artifact")
        return {**{name: getattr(row, name) for name in own}, "mode": self._mode(row)}

    def _mode(self, row: Row) -> str:
        return self._modes.get((row.base, row.variant), "merged")

    def _push(self, path: str, content: str) -> None:
        """Store an input, unless it is there."""
        if content in self._there:
            return
        known = self._store.read(content)
        if known is None or any(True for _ in self._store.damaged([known])):
            self._note(f"storing {path}")
            self._put(Path(path), content)
        self._there.add(content)

    def _put(self, path: Path, content: str) -> Artifact:
        if not path.exists():
            msg = f"{str(path)!r} does not exist any more"
            raise InputError(msg, hint=_HINT)
        alone = path.is_file()
        folder, files = (path.parent, [path.name]) if alone else (path, files_below(path))
        if self._hashes.of(path) == content:
            about = {"file": path.name} if alone else {}
            made = self._store.put(
                content, folder, files, kind="input", name=str(path), about=about
            )
            hashes = {name: each.sha256 for name, each in made.files.items()}
            if (hashes[path.name] if alone else content_of(hashes)) == content:
                return made
            with contextlib.suppress(StorageError):
                self._store.delete(content)
        msg = f"{str(path)!r} has changed since the plan was made"
        raise InputError(msg, hint=_HINT)


def _predecessors(plan: Plan) -> Callable[[Row], list[Row]]:
    """Return a function for the rows that a row waits for, directly or not, in plan order."""
    by_id = {row.id: row for row in plan.rows}
    places = {row.id: at for at, row in enumerate(plan.rows)}

    def of(row: Row) -> list[Row]:
        found: set[str] = set()
        waiting = [*row.needs, *row.after]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [*by_id[name].needs, *by_id[name].after]
        return [by_id[name] for name in sorted(found, key=places.__getitem__)]

    return of


def _texts_in(value: Any) -> set[str]:
    """Return all texts in JSON values."""
    if isinstance(value, str):
        return {value}
    each = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_texts_in, each))
