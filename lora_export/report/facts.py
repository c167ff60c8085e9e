"""The facts that a report shows, read once: manifest, JSON reports, file sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import resolve_inside, sha256_of_file
from lora_export.core.manifest import read_manifest
from lora_export.exports.verdict import verdict_of, verification_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["SKIPPED", "Facts", "read_facts"]

_LIMIT_BYTES: Final = 1 << 27
_REPORTS: Final = ("parity", "latency", "fidelity", "bench")
_NOT_THE_FILE: Final = "is not the file that the manifest knows"
_OUTDATED: Final = "is of graphs that have changed since"
_CHANGED: Final = "changed since it was verified; see: lora-export verify"
SKIPPED: Final = "reports/"
"""Files below this are about the export, and not of it."""


@dataclass(frozen=True)
class Facts:
    """An export.

    Attributes:
        manifest: Its manifest.
        parity: Rows of ``reports/parity.json`` by graph; so are the next two.
        latency: Of ``latency.json``.
        fidelity: Of ``fidelity.json``.
        bench: ``bench.json``; empty where there is none.
        environment: Where it was verified; empty where it was not.
        sizes: The bytes of each file.
        ignored: Reports that are left out, each with the reason.
    """

    manifest: Manifest
    parity: Mapping[str, Any] = field(repr=False)
    latency: Mapping[str, Any] = field(repr=False)
    fidelity: Mapping[str, Any] = field(repr=False)
    bench: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, Any] = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    ignored: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst verdict of the graphs and of the latency gates that were judged."""
        found = [verdict_of(self.manifest)]
        found += [str(row.get("verdict")) for row in self.latency.values()]
        gate = self.bench.get("gate")
        found += [str(gate["verdict"])] if gate else []
        order = ("fail", "ambiguous", "unverified")
        return next((verdict for verdict in order if verdict in found), "pass")

    def verification(self, adapter: str) -> str:
        """What is known of an adapter, however the export holds it."""
        return verification_of(self.manifest, adapter)

    def parity_of(self, adapter: str) -> Mapping[str, Any]:
        """The row of an adapter: its graph's, or its own under a graph that adapters share."""
        own = self.parity.get(adapter)
        if own is not None:
            return dict(own)
        shared = (row.get("adapters") or {} for row in self.parity.values())
        return next((dict(rows[adapter]) for rows in shared if adapter in rows), {})


def read_facts(root: Path) -> Facts:
    """Read what an export says of itself; a report that is not the manifest's is left out.

    Raises:
        ExportDirectoryError: It is no export, or one of its reports is damaged.
    """
    manifest = read_manifest(root)
    found: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for name in _REPORTS:
        file = f"reports/{name}.json"
        path = resolve_inside(root, file)
        if file not in manifest.files or not path.is_file():
            continue
        if path.stat().st_size > _LIMIT_BYTES or sha256_of_file(path) != manifest.files[file]:
            ignored[file] = _NOT_THE_FILE
            continue
        found[name] = _parsed(path)
    if _is_outdated(found.get("bench", {}), manifest):
        ignored["reports/bench.json"] = _OUTDATED
        del found["bench"]
    rows = {name: _rows(found.get(name, {}), name) for name in _REPORTS[:-1]}
    rows["parity"] = _current(rows["parity"], manifest)
    environments = (report.get("environment") for report in found.values())
    return Facts(
        manifest,
        **rows,
        bench=found.get("bench", {}),
        environment=next((each for each in environments if isinstance(each, dict)), {}),
        sizes=_sizes(root, manifest),
        ignored=ignored,
    )


def _is_outdated(bench: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether a graph that was timed is not the export's any more."""
    subjects = bench.get("subjects")
    rows = subjects.values() if isinstance(subjects, dict) else ()
    own = [row for row in rows if isinstance(row, dict) and not row.get("baseline")]
    tables = [row["files"] for row in own if isinstance(row.get("files"), dict)]
    return any(manifest.files.get(file) != sha for table in tables for file, sha in table.items())


def _current(rows: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return rows of ``parity.json`` without what they say of graphs and adapters of earlier.

    A verification writes its verdict to the manifest too, and what is replaced loses it there.
    """
    found: dict[str, Any] = {}
    for name, row in rows.items():
        record = manifest.graphs.get(name)
        if record is None:
            continue
        found[name] = _of_now(row, record.verification)
        if isinstance(row.get("adapters"), dict):
            held = {each: own.pack or own.row for each, own in manifest.adapters.items()}
            found[name]["adapters"] = {
                each: _of_now(own, known.verification)
                for each, own in row["adapters"].items()
                if (known := held.get(each)) is not None
            }
    return found


def _of_now(row: Any, verification: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise _damaged("reports/parity.json", "its graphs are no rows")
    if row.get("verdict", verification) == verification:
        return dict(row)
    return {"verdict": verification, "reason": _CHANGED}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(str(path), str(error)) from error
    if not isinstance(table, dict):
        raise _damaged(str(path), "it is no object")
    return table


def _rows(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    rows = report.get("graphs", {})
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise _damaged(f"reports/{name}.json", "its graphs are no rows")
    return rows


def _damaged(what: str, why: str) -> ExportDirectoryError:
    msg = f"the report {what!r} is damaged: {why}"
    return ExportDirectoryError(msg, hint="Write it again with: lora-export verify OUT")


def _sizes(root: Path, manifest: Manifest) -> dict[str, int]:
    paths = {file: resolve_inside(root, file) for file in manifest.files}
    return {
        file: path.stat().st_size
        for file, path in sorted(paths.items())
        if path.is_file() and not file.startswith(SKIPPED)
    }
