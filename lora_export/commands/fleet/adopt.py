"""An adapter of one export put into another of the same base: its files, records and verdicts.

A row that runs elsewhere leaves an adapter as a small export (`packed_adapter`): the files that it
alone has, a manifest that names no other adapter, and its rows of the reports. `adopt_adapter` puts
it into an export of the same base, which is then as if the row had run there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from lora_export.bundle.adapter_selection import select
from lora_export.core.changes import change_export
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import (
    atomic_write_bytes,
    copy_file,
    resolve_inside,
    sha256_of_file,
    staging_folder,
    storage_errors,
    write_synced,
)
from lora_export.core.json_file import read_table
from lora_export.core.manifest import (
    MANIFEST_NAME,
    REPORTS_FOLDER,
    GraphRecord,
    Manifest,
    edit_manifest,
    stored_manifest,
    write_manifest,
)
from lora_export.core.reports.fidelity_report import FidelityReport
from lora_export.core.reports.latency_report import LatencyReport
from lora_export.core.reports.parity_report import ParityReport
from lora_export.core.reports.quantization_report import QuantizationReport
from lora_export.core.reports.report_model import ReportModel, parse_report, report_bytes
from lora_export.exports.file_owners import files_of_adapter
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.ondevice.judge.tolerances import worst_of
from lora_export.verification.loss.gates import worst_loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["adopt_adapter", "adopt_engines", "adopt_stacks", "packed_adapter"]

_LIMIT_BYTES: Final = 1 << 28
_REPORTS: Final[Mapping[str, type[ReportModel]]] = {
    f"{REPORTS_FOLDER}parity.json": ParityReport,
    f"{REPORTS_FOLDER}latency.json": LatencyReport,
    f"{REPORTS_FOLDER}fidelity.json": FidelityReport,
    f"{REPORTS_FOLDER}quantization.json": QuantizationReport,
}


def packed_adapter(export_dir: Path, name: str, output: Path) -> list[str]:
    """Write an adapter of an export into a folder, as `adopt_adapter` takes it.

    Args:
        export_dir: The export.
        name: The adapter.
        output: A folder of this process alone.

    Returns:
        The files in `output`.

    Raises:
        StorageError: The disk refuses.
        InputError: A file of the adapter cannot be read.
    """
    with edit_manifest(export_dir) as manifest:
        whole = bool(manifest.rows)
        chosen = manifest if whole else select(manifest, [name])
        shared = {each.golden for each in chosen.graphs.values() if each.is_shared}
        own = files_of_adapter(manifest, name) | {each for each in shared if each in manifest.files}
        if whole:
            own = frozenset(each for each in manifest.files if not each.startswith(REPORTS_FOLDER))
        for file in sorted(own):
            _place(export_dir, file, output)
        reports = [each for each in _REPORTS if each in manifest.files]
        for file in reports:
            if whole:
                _place(export_dir, file, output)
                continue
            data = json.dumps(_rows_of(_report(export_dir / file), name, chosen)).encode()
            with storage_errors(str(output / file)):
                (output / file).parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(output / file, data)
        write_manifest(output, chosen)
    return [*sorted(own), *reports, MANIFEST_NAME]


def adopt_adapter(export_dir: Path, packed: Path, name: str) -> None:
    """Put an adapter into an export, in place of an earlier one of its name.

    Args:
        export_dir: The export: merged or swappable.
        packed: The adapter, as `packed_adapter` wrote it.
        name: Its name.

    Raises:
        ExportDirectoryError: It is of another base, or damaged.
        StorageError: The disk refuses; the export is as it was.
    """
    theirs = stored_manifest(packed)
    own = files_of_adapter(theirs, name)
    with edit_manifest(export_dir) as before, staging_folder(export_dir, name) as staging:
        _require_same_base(before, theirs, name)
        for file in sorted(own):
            _place(packed, file, staging)
        after = _with_adapter(before, theirs, name)
        shared = {graph for graph, each in after.graphs.items() if each.is_shared}
        for file, kind in _REPORTS.items():
            if not (packed / file).is_file():
                continue
            mine = _report(export_dir / file) if file in before.files else {}
            table = _merged(mine, _report(packed / file), shared)
            data = report_bytes(parse_report(kind, json.dumps(table).encode(), file))
            with storage_errors(file):
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
            after.files[file] = write_synced(staging / file, data)
        change_export(export_dir, staging, before, after)


def adopt_stacks(export_dir: Path, packed: Path) -> None:
    """Make a batched export that of `packed`: its stacks, its adapters, its reports.

    Raises:
        ExportDirectoryError: It is of another base, or damaged.
        StorageError: The disk refuses; the export is as it was.
    """
    theirs = stored_manifest(packed)
    with edit_manifest(export_dir) as before, staging_folder(export_dir, "stacks") as staging:
        _require_same_base(before, theirs, "the stacks")
        files = {file: each for file, each in theirs.files.items() if not _is_page(file)}
        for file, sha256 in files.items():
            if before.files.get(file) != sha256:
                _place(packed, file, staging)
        pages = {file: each for file, each in before.files.items() if _is_page(file)}
        after = theirs.model_copy(update={"files": {**files, **pages}})
        change_export(export_dir, staging, before, after)


def _is_page(file: str) -> bool:
    """Return whether a file is about an export and made of its reports."""
    return file.startswith(REPORTS_FOLDER) and file not in _REPORTS


def _require_same_base(mine: Manifest, theirs: Manifest, name: str) -> None:
    if mine.base.fingerprint != theirs.base.fingerprint:
        msg = f"{name} was made for a base of another fingerprint"
        raise ExportDirectoryError(msg, hint="Run the fleet again.")


def _with_adapter(before: Manifest, theirs: Manifest, name: str) -> Manifest:
    """Return a manifest with an adapter of another one."""
    adapters = {**before.adapters, name: theirs.adapters[name]}
    graphs = dict(before.graphs)
    parameters = {
        parameter: [use for use in uses if use.graph != name]
        for parameter, uses in before.parameters.items()
    }
    if name in theirs.graphs:
        graphs.pop(name, None)
        graphs[name] = theirs.graphs[name]
        for parameter, uses in theirs.parameters.items():
            parameters.setdefault(parameter, []).extend(u for u in uses if u.graph == name)
    gone = files_of_adapter(before, name)
    files = {file: each for file, each in before.files.items() if file not in gone}
    files |= {file: theirs.files[file] for file in sorted(files_of_adapter(theirs, name))}
    after = before.model_copy(
        update={"adapters": adapters, "graphs": graphs, "parameters": parameters, "files": files}
    )
    judged = {
        graph: _judged(record, after) if record.is_shared else record
        for graph, record in graphs.items()
    }
    return after.model_copy(update={"graphs": judged})


def _judged(record: GraphRecord, manifest: Manifest) -> GraphRecord:
    """Return the record of a graph that adapters share: it is as good as the worst of them."""
    stored = [stored_adapter(manifest, name).record for name in manifest.adapters]
    losses = [each.loss for each in stored if each.loss is not None]
    update: dict[str, Any] = {"verification": worst_of([each.verification for each in stored])}
    if losses:
        update["loss"] = worst_loss(losses)
    return record.model_copy(update=update)


def _rows_of(table: dict[str, Any], name: str, manifest: Manifest) -> dict[str, Any]:
    """Return a report with the rows of one adapter."""
    graphs: dict[str, Any] = {}
    for graph, row in (table.get("graphs") or {}).items():
        if graph == name:
            graphs[graph] = row
        elif graph in manifest.graphs and manifest.graphs[graph].is_shared:
            own = {each: one for each, one in row.get("adapters", {}).items() if each == name}
            graphs[graph] = {**row, **({"adapters": own} if "adapters" in row else {})}
    return {**table, "graphs": graphs}


def _merged(mine: dict[str, Any], theirs: dict[str, Any], shared: Iterable[str]) -> dict[str, Any]:
    """Return a report with the rows of one adapter of another one."""
    graphs = dict(mine.get("graphs") or {})
    for graph, row in theirs["graphs"].items():
        if graph not in shared or "adapters" not in row:
            graphs[graph] = row
            continue
        adapters = {**graphs.get(graph, {}).get("adapters", {}), **row["adapters"]}
        verdicts = [each["verdict"] for each in adapters.values()]
        worst = next((each for each in _WORST_FIRST if each in verdicts), row.get("verdict"))
        told = [f"{each} is {own['verdict']}" for each, own in adapters.items()
                if own["verdict"] == worst != "pass"]  # fmt: skip
        reason = "; ".join(told) if told else row.get("reason", "")
        graphs[graph] = {**row, "verdict": worst, "reason": reason, "adapters": adapters}
    return {**theirs, "graphs": graphs}


_WORST_FIRST: Final = ("fail", "ambiguous", "unverified", "ungated", "pass")


def _report(path: Path) -> dict[str, Any]:
    hint = "Run the fleet again."
    return read_table(path, _LIMIT_BYTES, ExportDirectoryError, absent=hint, damaged=hint)


def _place(source: Path, file: str, target: Path) -> None:
    """Copy a file from one folder to the same place in another."""
    place = resolve_inside(target, file)
    with storage_errors(str(place)):
        place.parent.mkdir(parents=True, exist_ok=True)
    copy_file(resolve_inside(source, file), place, synced=True)


def adopt_engines(export_dir: Path, packed: Path) -> None:
    """Put engines that were built elsewhere into an export.

    Args:
        export_dir: The export.
        packed: A folder with files below ``engines/``.

    Raises:
        StorageError: The disk refuses; the export is as it was.
    """
    with edit_manifest(export_dir) as before, staging_folder(export_dir, "engines") as staging:
        files = dict(before.files)
        for path in sorted(packed.glob("engines/*")):
            file = path.relative_to(packed).as_posix()
            _place(packed, file, staging)
            files[file] = sha256_of_file(staging / file)
        after = before.model_copy(update={"files": files})
        change_export(export_dir, staging, before, after)
