"""Reports written, and the manifest told what was found."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any

from lora_export.base.files import atomic_write_bytes, storage_errors
from lora_export.base.manifest import Manifest, edit_manifest, write_manifest
from lora_export.verify.golden import golden_file, write_golden

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.verify.parity import GraphParity

__all__ = ["environment", "record_parity", "write_report"]


def record_parity(root: Path, found: Mapping[str, GraphParity]) -> Manifest:
    """Write golden files and ``reports/parity.json``, and each graph's verdict to the manifest.

    Graphs that were removed or replaced meanwhile keep what the manifest says of them.
    """
    files: dict[str, str] = {}
    for name, parity in found.items():
        if parity.golden is not None:
            files[golden_file(name)] = write_golden(root, name, parity.golden)
    rows = {name: parity.row for name, parity in found.items()}
    report = {"environment": environment(), "graphs": rows}
    files["reports/parity.json"] = write_report(root, "parity", report)
    with edit_manifest(root) as manifest:
        graphs = dict(manifest.graphs)
        for name, parity in found.items():
            if name in graphs:
                golden = golden_file(name) if parity.golden is not None else graphs[name].golden
                graphs[name] = graphs[name].model_copy(
                    update={"verification": parity.verdict, "golden": golden}
                )
        updated = manifest.model_copy(
            update={"graphs": graphs, "files": {**manifest.files, **files}}
        )
        write_manifest(root, updated)
    return updated


def write_report(root: Path, name: str, report: Mapping[str, Any]) -> str:
    """Write ``reports/<name>.json``; return its SHA-256."""
    path = root / "reports" / f"{name}.json"
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
