"""Reports written into an export, and the verdicts recorded in its manifest."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.changes import replace_files
from lora_export.core.files import resolve_inside, sha256_of_file
from lora_export.core.manifest import Manifest, edit_manifest
from lora_export.verification.golden import golden_bytes, golden_file
from lora_export.verification.swappable_check import worst_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from lora_export.verification.parity import GraphParity

__all__ = [
    "environment",
    "prune_reports",
    "record_bench",
    "record_fidelity",
    "record_latency",
    "record_parity",
]

_PARITY: Final = "reports/parity.json"
_LATENCY: Final = "reports/latency.json"
_BENCH: Final = "reports/bench.json"
_FIDELITY: Final = "reports/fidelity.json"


def record_parity(root: Path, before: Manifest, found: Mapping[str, GraphParity]) -> Manifest:
    """Write golden files and ``reports/parity.json``, and each graph's verdict to the manifest.

    Args:
        root: The export directory.
        before: The manifest when the comparison began; a graph that was removed or replaced since
            is left alone, for the verdict is on another graph.
        found: The verdicts.
    """
    with edit_manifest(root) as manifest:
        current = {
            name: parity
            for name, parity in found.items()
            if name in manifest.graphs
            and manifest.graphs[name].sha256 == before.graphs[name].sha256
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
        earlier = _earlier_rows(root, manifest, _PARITY)
        recorded = {
            name: _with_others(name, parity, manifest, earlier.get(name, {}))
            for name, parity in current.items()
        }
        rows = {name: parity.row for name, parity in recorded.items()}
        report = _with_earlier_rows(manifest, earlier, rows)
        contents = {golden_file(name): golden_bytes(each) for name, each in golden.items()}
        contents[_PARITY] = _bytes_of(report)
        graphs = dict(manifest.graphs)
        for name, parity in recorded.items():
            kept = golden_file(name) if name in golden else graphs[name].golden
            graphs[name] = graphs[name].model_copy(
                update={"verification": parity.verdict, "golden": kept}
            )
        adapters = dict(manifest.adapters)
        for name, parity in packs.items():
            field = "row" if adapters[name].pack is None else "pack"
            if (own := adapters[name].row or adapters[name].pack) is not None:
                kept = golden_file(name) if name in golden else own.golden
                told = own.model_copy(update={"verification": parity.verdict, "golden": kept})
                adapters[name] = adapters[name].model_copy(update={field: told})
        updated = manifest.model_copy(update={"graphs": graphs, "adapters": adapters})
        return replace_files(root, manifest, updated, contents)


def _with_others(
    name: str, parity: GraphParity, manifest: Manifest, earlier: Mapping[str, Any]
) -> GraphParity:
    """Return the verdict on a graph that adapters share, with those that were not compared now.

    What is recorded of these stays: the graph is as good as the worst of all.
    """
    others = {
        each: held.verification
        for each, record in manifest.adapters.items()
        if each not in parity.adapters and (held := record.pack or record.row) is not None
    }
    if not manifest.graphs[name].is_shared or not others:
        return parity
    verdict = worst_of([parity.verdict, *others.values()])
    told = [f"{each} is {kept}, as recorded" for each, kept in others.items() if kept != "pass"]
    reasons = [parity.row["reason"]] if parity.verdict != "pass" or not told else []
    kept_rows = {each: row for each, row in earlier.get("adapters", {}).items() if each in others}
    row = {
        **parity.row,
        "verdict": verdict,
        "reason": "; ".join([*reasons, *told]),
        "adapters": {**kept_rows, **parity.row["adapters"]},
    }
    return replace(parity, verdict=verdict, row=row)


def record_latency(root: Path, rows: Mapping[str, Any]) -> Manifest:
    """Write ``reports/latency.json``; rows of other adapters stay."""
    return _record_rows(root, _LATENCY, rows)


def record_fidelity(root: Path, rows: Mapping[str, Any]) -> Manifest:
    """Write ``reports/fidelity.json``; rows of other adapters stay."""
    return _record_rows(root, _FIDELITY, rows)


def record_bench(root: Path, text: bytes) -> Path:
    """Write ``reports/bench.json``, in place of an earlier one; return where it is."""
    with edit_manifest(root) as manifest:
        replace_files(root, manifest, manifest, {_BENCH: text})
    return resolve_inside(root, _BENCH)


def _record_rows(root: Path, file: str, rows: Mapping[str, Any]) -> Manifest:
    with edit_manifest(root) as manifest:
        report = _with_earlier_rows(manifest, _earlier_rows(root, manifest, file), rows)
        return replace_files(root, manifest, manifest, {file: _bytes_of(report)})


def prune_reports(
    root: Path, replaced: Collection[str] = (), *, measured: Collection[str] = ()
) -> Manifest:
    """Take the rows of graphs and adapters that are gone out of the reports.

    Args:
        root: The export directory.
        replaced: Adapters that are others now.
        measured: Those of them whose row in ``reports/fidelity.json`` is new.
    """
    with edit_manifest(root) as manifest:
        contents: dict[str, bytes] = {}
        for file in (_PARITY, _LATENCY, _FIDELITY):
            if file in manifest.files:
                gone = set(replaced) - (set(measured) if file == _FIDELITY else set())
                earlier = _earlier_rows(root, manifest, file)
                contents[file] = _bytes_of(_with_earlier_rows(manifest, earlier, {}, gone=gone))
        return replace_files(root, manifest, manifest, contents) if contents else manifest


def _with_earlier_rows(
    manifest: Manifest,
    earlier: Mapping[str, Any],
    rows: Mapping[str, Any],
    *,
    gone: Collection[str] = (),
) -> dict[str, Any]:
    """Return a report of `rows` and of the rows of `earlier` of other graphs, but `gone`."""
    kept = {name: _of_adapters(row, manifest, gone) for name, row in earlier.items()}
    graphs = {
        name: rows.get(name, kept.get(name))
        for name in manifest.graphs
        if name in rows or (name in kept and name not in gone)
    }
    return {"environment": environment(), "graphs": graphs}


def _earlier_rows(root: Path, manifest: Manifest, file: str) -> dict[str, Any]:
    """Return the rows of the last report, if it is the one that the manifest names."""
    path = resolve_inside(root, file)
    if file in manifest.files and path.is_file() and sha256_of_file(path) == manifest.files[file]:
        rows: dict[str, Any] = json.loads(path.read_text("utf-8"))["graphs"]
        return rows
    return {}


def _of_adapters(row: dict[str, Any], manifest: Manifest, gone: Collection[str]) -> dict[str, Any]:
    """Return the row of a graph that adapters share with those that are still there."""
    if "adapters" not in row:
        return row
    kept = {
        name: own
        for name, own in row["adapters"].items()
        if name in manifest.adapters and name not in gone
    }
    return {**row, "adapters": kept}


def _bytes_of(report: Mapping[str, Any]) -> bytes:
    """Return what the file of a report holds."""
    return json.dumps(report, indent=1).encode() + b"\n"


def environment() -> dict[str, Any]:
    """Return what a figure depends on: processor, system, versions."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str] = {}
    for package in ("lora-export", "onnxruntime", "torch", "transformers", "peft", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions,
    }
