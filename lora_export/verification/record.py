"""Reports written into an export, and the verdicts recorded in its manifest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, TypeVar

from lora_export.core.changes import replace_files
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import Manifest, edit_manifest
from lora_export.core.modes import SHARED_MODES, Mode
from lora_export.core.reports.fidelity_report import FidelityReport, FidelityRow
from lora_export.core.reports.latency_report import LatencyReport, LatencyRow
from lora_export.core.reports.parity_report import ParityReport, ParityRow
from lora_export.core.reports.quantization_report import QuantizationReport, QuantizationRow
from lora_export.core.reports.report_model import EnvironmentRow, parse_report, report_bytes
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file
from lora_export.ondevice.judge.tolerances import worst_of
from lora_export.verification.golden import golden_bytes, golden_file
from lora_export.verification.loss.shared_rows import quantization_rows, rows_without

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from lora_export.verification.parity import GraphParity

__all__ = [
    "environment",
    "judged_manifest",
    "prune_reports",
    "record_bench",
    "record_fidelity",
    "record_latency",
    "record_parity",
]

_FIELDS: Final[Mapping[Mode, str]] = {Mode.SWAPPABLE: "pack", Mode.BATCHED: "row"}
"""What has the verdict on an adapter of a shared graph, in the adapter's record."""
_PARITY: Final = "reports/parity.json"
_LATENCY: Final = "reports/latency.json"
_BENCH: Final = "reports/bench.json"
_FIDELITY: Final = "reports/fidelity.json"
_QUANTIZATION: Final = "reports/quantization.json"

Report = TypeVar("Report", ParityReport, LatencyReport, FidelityReport, QuantizationReport)
Row = TypeVar("Row")


def record_parity(export_dir: Path, before: Manifest, found: Mapping[str, GraphParity]) -> Manifest:
    """Write golden files and the reports on graphs, and each graph's verdicts to the manifest.

    ``reports/parity.json`` has all of them, ``reports/quantization.json`` the quantized ones.

    Args:
        export_dir: The export directory.
        before: The manifest when the comparison began; a graph that was removed or replaced since
            is left alone, for the verdict is on another graph.
        found: The verdicts.

    Raises:
        StorageError: The disk refuses; the export is as it was.
    """
    with edit_manifest(export_dir) as manifest:
        updated, contents = _judged(export_dir, before, manifest, found)
        return replace_files(export_dir, manifest, updated, contents)


def judged_manifest(
    export_dir: Path, before: Manifest, found: Mapping[str, GraphParity]
) -> Manifest:
    """Return the manifest with the verdicts, where `record_parity` cannot write them."""
    return _judged(export_dir, before, before, found)[0]


def _judged(
    export_dir: Path, before: Manifest, manifest: Manifest, found: Mapping[str, GraphParity]
) -> tuple[Manifest, dict[str, bytes]]:
    """Return a manifest with the verdicts, and what the files hold that go with it."""
    current = {
        name: parity
        for name, parity in found.items()
        if name in manifest.graphs and manifest.graphs[name].sha256 == before.graphs[name].sha256
    }
    packs = {
        name: parity
        for graph in current.values()
        for name, parity in graph.adapters.items()
        if name in manifest.adapters
        and manifest.adapters[name].sha256 == before.adapters[name].sha256
    }
    golden = {
        name: each.golden for name, each in (current | packs).items() if each.golden is not None
    }
    earlier = _earlier(ParityReport, export_dir, manifest, _PARITY).graphs
    recorded = {
        name: _with_others(name, parity, manifest, earlier.get(name))
        for name, parity in current.items()
    }
    rows = {name: parity.row for name, parity in recorded.items()}
    contents = {golden_file(name): golden_bytes(each) for name, each in golden.items()}
    contents[_PARITY] = _parity_bytes(manifest, earlier, rows)
    lost = _earlier(QuantizationReport, export_dir, manifest, _QUANTIZATION).graphs
    losses = quantization_rows(manifest, lost, current)
    if losses:
        contents[_QUANTIZATION] = _quantization_bytes(
            manifest, rows_without(manifest, lost, ()), losses
        )
    graphs = dict(manifest.graphs)
    for name, parity in recorded.items():
        kept = golden_file(name) if name in golden else graphs[name].golden
        loss = losses[name].verdict if name in losses else graphs[name].loss
        graphs[name] = graphs[name].model_copy(
            update={"verification": parity.verdict, "golden": kept, "loss": loss}
        )
    adapters = dict(manifest.adapters)
    for name, parity in packs.items():
        stored = stored_adapter(manifest, name)
        if (field := _FIELDS.get(stored.mode)) is not None:
            own = stored.record
            kept = golden_file(name) if name in golden else own.golden
            lost_now = parity.quantization.verdict if parity.quantization is not None else own.loss
            told = own.model_copy(
                update={"verification": parity.verdict, "golden": kept, "loss": lost_now}
            )
            adapters[name] = adapters[name].model_copy(update={field: told})
    return manifest.model_copy(update={"graphs": graphs, "adapters": adapters}), contents


def _with_others(
    name: str, parity: GraphParity, manifest: Manifest, earlier: ParityRow | None
) -> GraphParity:
    """Return the verdict on a graph that adapters share, with those that were not compared now.

    What is recorded of these stays: the graph is as good as the worst of all.
    """
    others = {
        each: stored.record.verification
        for each in manifest.adapters
        if each not in parity.adapters
        and (stored := stored_adapter(manifest, each)).mode in SHARED_MODES
    }
    if not manifest.graphs[name].is_shared or not others:
        return parity
    told = [f"{each} is {kept}, as recorded" for each, kept in others.items() if kept != "pass"]
    reasons = [parity.row.reason] if parity.verdict != "pass" or not told else []
    recorded = earlier.adapters if earlier is not None else {}
    kept_rows = {each: row for each, row in recorded.items() if each in others}
    row = parity.row.model_copy(
        update={
            "verdict": worst_of([parity.verdict, *others.values()]),
            "reason": "; ".join([*reasons, *told]),
            "adapters": {**kept_rows, **parity.row.adapters},
        }
    )
    return replace(parity, row=row)


def record_latency(export_dir: Path, rows: Mapping[str, LatencyRow]) -> Manifest:
    """Write ``reports/latency.json``; rows of other adapters stay."""
    with edit_manifest(export_dir) as manifest:
        earlier = _earlier(LatencyReport, export_dir, manifest, _LATENCY).graphs
        contents = {_LATENCY: _latency_bytes(manifest, earlier, rows)}
        return replace_files(export_dir, manifest, manifest, contents)


def record_fidelity(export_dir: Path, rows: Mapping[str, FidelityRow]) -> Manifest:
    """Write ``reports/fidelity.json``; rows of other adapters stay."""
    with edit_manifest(export_dir) as manifest:
        earlier = _earlier(FidelityReport, export_dir, manifest, _FIDELITY).graphs
        contents = {_FIDELITY: _fidelity_bytes(manifest, earlier, rows)}
        return replace_files(export_dir, manifest, manifest, contents)


def record_bench(export_dir: Path, text: bytes) -> Path:
    """Write ``reports/bench.json``, in place of an earlier one; return where it is."""
    with edit_manifest(export_dir) as manifest:
        replace_files(export_dir, manifest, manifest, {_BENCH: text})
    return resolve_inside(export_dir, _BENCH)


def prune_reports(
    export_dir: Path, replaced: Collection[str] = (), *, measured: Collection[str] = ()
) -> Manifest:
    """Take the rows of graphs and adapters that are gone out of the reports.

    Args:
        export_dir: The export directory.
        replaced: Adapters that are others now.
        measured: Those of them whose row in ``reports/fidelity.json`` is new.
    """
    with edit_manifest(export_dir) as manifest:
        gone = frozenset(replaced)
        contents: dict[str, bytes] = {}
        if _PARITY in manifest.files:
            parity = _earlier(ParityReport, export_dir, manifest, _PARITY).graphs
            contents[_PARITY] = _parity_bytes(manifest, parity, {}, gone)
        if _LATENCY in manifest.files:
            latency = _earlier(LatencyReport, export_dir, manifest, _LATENCY).graphs
            contents[_LATENCY] = _latency_bytes(manifest, latency, {}, gone)
        updated = manifest
        if _QUANTIZATION in manifest.files:
            lost = _earlier(QuantizationReport, export_dir, manifest, _QUANTIZATION).graphs
            rows = rows_without(manifest, lost, gone)
            contents[_QUANTIZATION] = _quantization_bytes(manifest, {}, rows)
            updated = _with_losses(manifest, rows)
        if _FIDELITY in manifest.files:
            fidelity = _earlier(FidelityReport, export_dir, manifest, _FIDELITY).graphs
            contents[_FIDELITY] = _fidelity_bytes(manifest, fidelity, {}, gone - set(measured))
        return replace_files(export_dir, manifest, updated, contents) if contents else manifest


def _with_losses(manifest: Manifest, rows: Mapping[str, QuantizationRow]) -> Manifest:
    """Return the manifest with the verdicts on the loss of graphs that adapters share."""
    graphs = {
        name: graph.model_copy(update={"loss": rows[name].verdict})
        if graph.is_shared and name in rows
        else graph
        for name, graph in manifest.graphs.items()
    }
    return manifest.model_copy(update={"graphs": graphs})


def _earlier(kind: type[Report], export_dir: Path, manifest: Manifest, file: str) -> Report:
    """Return the last report, if it is the one that the manifest names; else an empty one."""
    with contextlib.suppress(OSError):  # gone, or no file: it is written anew
        raw = read_file(resolve_inside(export_dir, file), TABLE_LIMIT_BYTES)
        if hashlib.sha256(raw).hexdigest() == manifest.files.get(file):
            return parse_report(kind, raw, file)
    return kind()


def _parity_bytes(
    manifest: Manifest,
    earlier: Mapping[str, ParityRow],
    rows: Mapping[str, ParityRow],
    gone: Collection[str] = (),
) -> bytes:
    """Return ``reports/parity.json``: `rows`, and of `earlier` those of others, but `gone`."""
    kept = {name: _of_adapters(row, manifest, gone) for name, row in earlier.items()}
    graphs = _merged(manifest, kept, rows, gone)
    return report_bytes(ParityReport(environment=environment(dated=True), graphs=graphs))


def _latency_bytes(
    manifest: Manifest,
    earlier: Mapping[str, LatencyRow],
    rows: Mapping[str, LatencyRow],
    gone: Collection[str] = (),
) -> bytes:
    """Return ``reports/latency.json``; see `_parity_bytes`."""
    graphs = _merged(manifest, earlier, rows, gone)
    return report_bytes(LatencyReport(environment=environment(dated=True), graphs=graphs))


def _fidelity_bytes(
    manifest: Manifest,
    earlier: Mapping[str, FidelityRow],
    rows: Mapping[str, FidelityRow],
    gone: Collection[str] = (),
) -> bytes:
    """Return ``reports/fidelity.json``; see `_parity_bytes`."""
    graphs = _merged(manifest, earlier, rows, gone)
    return report_bytes(FidelityReport(environment=environment(), graphs=graphs))


def _quantization_bytes(
    manifest: Manifest,
    earlier: Mapping[str, QuantizationRow],
    rows: Mapping[str, QuantizationRow],
) -> bytes:
    """Return ``reports/quantization.json``: `rows`, and of `earlier` those of others."""
    graphs = _merged(manifest, earlier, rows, ())
    return report_bytes(QuantizationReport(environment=environment(), graphs=graphs))


def _merged(
    manifest: Manifest,
    earlier: Mapping[str, Row],
    rows: Mapping[str, Row],
    gone: Collection[str],
) -> dict[str, Row]:
    """Return the rows of the graphs that there are: those of `rows`, else the earlier ones."""
    current = {**{name: row for name, row in earlier.items() if name not in gone}, **rows}
    return {name: current[name] for name in manifest.graphs if name in current}


def _of_adapters(row: ParityRow, manifest: Manifest, gone: Collection[str]) -> ParityRow:
    """Return the row of a graph that adapters share with those that are still there."""
    if "adapters" not in row.model_fields_set:
        return row
    kept = {
        name: own
        for name, own in row.adapters.items()
        if name in manifest.adapters and name not in gone
    }
    return row.model_copy(update={"adapters": kept})


def environment(*, dated: bool = False) -> EnvironmentRow:
    """Return what a figure depends on: processor, system, versions.

    Args:
        dated: Whether the day is part of it: that of ``SOURCE_DATE_EPOCH``, or today.
    """
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str] = {}
    for package in ("lora-export", "onnxruntime", "torch", "transformers", "peft", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    found = EnvironmentRow(
        machine=platform.machine(),
        system=platform.system(),
        processors=os.cpu_count(),
        python=platform.python_version(),
        packages=versions,
    )
    return found.model_copy(update={"date": _today()}) if dated else found


def _today() -> str:
    """Return the day in UTC; a build that sets ``SOURCE_DATE_EPOCH`` gets the same every time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(epoch) if epoch.isdecimal() else time.time()
    return datetime.fromtimestamp(seconds, timezone.utc).date().isoformat()
