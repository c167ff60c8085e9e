"""The facts that a report shows, read once: manifest, JSON reports, file sizes."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from lora_export.core.files import resolve_inside
from lora_export.core.manifest import REPORTS_FOLDER, read_manifest
from lora_export.core.reports.fidelity_report import FidelityReport, FidelityRow
from lora_export.core.reports.latency_report import LatencyReport, LatencyRow
from lora_export.core.reports.parity_report import ParityReport, ParityRow
from lora_export.core.reports.quantization_report import QuantizationReport, QuantizationRow
from lora_export.core.reports.report_model import EnvironmentRow, parse_report
from lora_export.exports.stored_adapters import find_stored
from lora_export.exports.verdict import verdict_of, verification_of
from lora_export.latency.bench_report import BenchReport
from lora_export.ondevice.file_opening import (
    TABLE_LIMIT_BYTES,
    read_file,
    reason_of,
    require_file,
)
from lora_export.ondevice.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = ["Facts", "named", "read_facts"]

_NAME: Final = 64
_REPORTS: Final = ("parity", "latency", "fidelity", "quantization", "bench")
_NOT_THE_FILE: Final = "does not match the manifest"
_OUTDATED: Final = "is of graphs that have changed since"
_CHANGED: Final = "changed since it was verified; see: lora-export verify"
Report = TypeVar("Report", ParityReport, LatencyReport, FidelityReport, QuantizationReport)


@dataclass(frozen=True)
class Facts:
    """An export.

    Attributes:
        manifest: Its manifest.
        parity: Rows of ``reports/parity.json`` by graph; so are the next three.
        latency: Of ``latency.json``.
        fidelity: Of ``fidelity.json``.
        quantization: Of ``quantization.json``; those of shared graphs hold a row for each adapter.
        bench: ``bench.json``; None where there is none.
        environment: Where it was verified.
        sizes: The bytes of each file.
        ignored: Reports that are left out, each with the reason.
    """

    manifest: Manifest
    parity: Mapping[str, ParityRow] = field(repr=False)
    latency: Mapping[str, LatencyRow] = field(repr=False)
    fidelity: Mapping[str, FidelityRow] = field(repr=False)
    quantization: Mapping[str, QuantizationRow] = field(repr=False)
    bench: BenchReport | None = field(repr=False)
    environment: EnvironmentRow = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    ignored: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst verdict of the graphs, of their losses and of the latency gates."""
        found: list[str] = [verdict_of(self.manifest)]
        found += [row.verdict for row in self.quantization.values()]
        found += [row.verdict for row in self.latency.values()]
        gate = self.bench.gate if self.bench is not None else None
        found += [gate.verdict] if gate is not None else []
        order = ("fail", "ambiguous", "unverified")
        return next((verdict for verdict in order if verdict in found), "pass")

    def verification(self, adapter: str) -> str:
        """The verdict on an adapter, for every mode of export."""
        return verification_of(self.manifest, adapter)

    def parity_of(self, adapter: str) -> ParityRow | None:
        """The row of an adapter: its graph's, or its own under a graph that adapters share."""
        own = self.parity.get(adapter)
        if own is not None:
            return own
        shared = (row.adapters for row in self.parity.values())
        return next((rows[adapter] for rows in shared if adapter in rows), None)


def named(facts: Facts, most: int = 3) -> str:
    """Return the adapters of an export by name; of many, the first and how many more."""
    names = list(facts.manifest.adapters)
    shown = [printable(name, _NAME) for name in names[:most]]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    parts = [*shown, *more]
    if not parts:
        return "The base alone"
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def read_facts(export_dir: Path) -> Facts:
    """Read what an export says of itself; a report that is not the manifest's is left out.

    Raises:
        ExportDirectoryError: It is not an export, or one of its reports is damaged.
    """
    manifest = read_manifest(export_dir)
    ignored: dict[str, str] = {}
    raw = {name: _contents(export_dir, manifest, name, ignored) for name in _REPORTS}
    parity = _parsed(ParityReport, "parity", raw["parity"])
    latency = _parsed(LatencyReport, "latency", raw["latency"])
    fidelity = _parsed(FidelityReport, "fidelity", raw["fidelity"])
    quantization = _parsed(QuantizationReport, "quantization", raw["quantization"])
    bench = None
    if raw["bench"] is not None:
        bench = parse_report(BenchReport, raw["bench"], "reports/bench.json")
    if bench is not None and _is_outdated(bench, manifest):
        ignored["reports/bench.json"] = _OUTDATED
        bench = None
    known = (
        report for report in (parity, latency, fidelity, quantization) if report.model_fields_set
    )
    return Facts(
        manifest,
        parity=_current(parity.graphs, manifest),
        latency=latency.graphs,
        fidelity=fidelity.graphs,
        quantization=_of_graphs(quantization.graphs, manifest),
        bench=bench,
        environment=next((report.environment for report in known), EnvironmentRow()),
        sizes=_sizes(export_dir, manifest),
        ignored=ignored,
    )


def _contents(
    export_dir: Path, manifest: Manifest, name: str, ignored: dict[str, str]
) -> bytes | None:
    """Return a report that the manifest names; add another of that name to `ignored`."""
    file = f"reports/{name}.json"
    path = resolve_inside(export_dir, file)
    if file not in manifest.files:
        return None
    try:
        raw = read_file(path, TABLE_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        ignored[file] = f"cannot be read: {reason_of(error)}"
        return None
    if hashlib.sha256(raw).hexdigest() != manifest.files[file]:
        ignored[file] = _NOT_THE_FILE
        return None
    return raw


def _parsed(kind: type[Report], name: str, raw: bytes | None) -> Report:
    """Return a report; an empty one where there is no file."""
    return kind() if raw is None else parse_report(kind, raw, f"reports/{name}.json")


def _is_outdated(bench: BenchReport, manifest: Manifest) -> bool:
    """Whether a graph that was timed is not the export's any more."""
    tables = [subject.files for subject in bench.subjects.values() if not subject.baseline]
    return any(manifest.files.get(file) != sha for table in tables for file, sha in table.items())


def _current(rows: Mapping[str, ParityRow], manifest: Manifest) -> dict[str, ParityRow]:
    """Return rows of ``parity.json`` without what they say of graphs and adapters of earlier.

    A verification writes its verdict to the manifest too, and what is replaced loses it there.
    """
    found: dict[str, ParityRow] = {}
    for name, row in rows.items():
        record = manifest.graphs.get(name)
        if record is None:
            continue
        adapters = {
            each: _of_now(own, known.record.verification)
            for each, own in row.adapters.items()
            if (known := find_stored(manifest, each)) is not None
        }
        current = _of_now(row, record.verification)
        found[name] = current.model_copy(update={"adapters": adapters})
    return found


def _of_graphs(
    rows: Mapping[str, QuantizationRow], manifest: Manifest
) -> dict[str, QuantizationRow]:
    """Return rows of ``quantization.json`` without graphs and adapters that are gone or changed."""
    found: dict[str, QuantizationRow] = {}
    for name, row in rows.items():
        if name in manifest.graphs and manifest.graphs[name].loss == row.verdict:
            kept = {each: own for each, own in row.adapters.items() if each in manifest.adapters}
            found[name] = row.model_copy(update={"adapters": kept})
    return found


def _of_now(row: ParityRow, verification: Verdict) -> ParityRow:
    if row.verdict == verification:
        return row
    return ParityRow(verdict=verification, reason=_CHANGED)


def _sizes(export_dir: Path, manifest: Manifest) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for file in sorted(manifest.files):
        if not file.startswith(REPORTS_FOLDER):
            with contextlib.suppress(OSError):  # `verify` and `inspect` say what is wrong with it
                sizes[file] = require_file(resolve_inside(export_dir, file)).st_size
    return sizes
