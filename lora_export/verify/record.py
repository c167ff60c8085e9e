"""Reports written, and the manifest told what was found."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.base.files import (
    atomic_write_bytes,
    resolve_inside,
    sha256_of_file,
    storage_errors,
)
from lora_export.base.manifest import Manifest, edit_manifest, write_manifest
from lora_export.exports.packs import SWAPPABLE
from lora_export.exports.stacks import BATCHED
from lora_export.verify.golden import golden_file, write_golden
from lora_export.verify.swapping import worst_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from lora_export.verify.parity import GraphParity

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
        report = _with_earlier_rows(root, manifest, _PARITY, rows)
        # Until the new files are there, the manifest vouches for none of them.
        stale = {_PARITY, *(golden_file(name) for name in golden)}
        bare = manifest.model_copy(
            update={"files": {k: v for k, v in manifest.files.items() if k not in stale}}
        )
        write_manifest(root, bare)
        files = {golden_file(name): write_golden(root, name, each) for name, each in golden.items()}
        files[_PARITY] = _write_report(root, _PARITY, report)
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
        updated = bare.model_copy(
            update={"graphs": graphs, "adapters": adapters, "files": {**bare.files, **files}}
        )
        write_manifest(root, updated)
    return updated


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
    if manifest.graphs[name].mode not in {SWAPPABLE, BATCHED} or not others:
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
        others = {key: value for key, value in manifest.files.items() if key != _BENCH}
        write_manifest(root, manifest.model_copy(update={"files": others}))
        path = resolve_inside(root, _BENCH)
        with storage_errors(str(path)):
            path.parent.mkdir(exist_ok=True)
        files = {**others, _BENCH: atomic_write_bytes(path, text)}
        write_manifest(root, manifest.model_copy(update={"files": files}))
    return path


def _record_rows(root: Path, file: str, rows: Mapping[str, Any]) -> Manifest:
    with edit_manifest(root) as manifest:
        report = _with_earlier_rows(root, manifest, file, rows)
        others = {key: value for key, value in manifest.files.items() if key != file}
        write_manifest(root, manifest.model_copy(update={"files": others}))
        digest = _write_report(root, file, report)
        updated = manifest.model_copy(update={"files": {**others, file: digest}})
        write_manifest(root, updated)
    return updated


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
        files = dict(manifest.files)
        for file in (_PARITY, _LATENCY, _FIDELITY):
            if file in files:
                gone = set(replaced) - (set(measured) if file == _FIDELITY else set())
                files[file] = _write_report(
                    root, file, _with_earlier_rows(root, manifest, file, {}, gone=gone)
                )
        updated = manifest.model_copy(update={"files": files})
        write_manifest(root, updated)
    return updated


def _with_earlier_rows(
    root: Path,
    manifest: Manifest,
    file: str,
    rows: Mapping[str, Any],
    *,
    gone: Collection[str] = (),
) -> dict[str, Any]:
    """Return a report of `rows` and of what the last report says of other graphs, but `gone`."""
    earlier = _earlier_rows(root, manifest, file)
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


def _write_report(root: Path, file: str, report: Mapping[str, Any]) -> str:
    """Write a report; return its SHA-256."""
    path = resolve_inside(root, file)
    with storage_errors(str(path)):
        path.parent.mkdir(exist_ok=True)
    return atomic_write_bytes(path, json.dumps(report, indent=1).encode() + b"\n")


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
