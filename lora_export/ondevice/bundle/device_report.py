"""The report of a bundle's entry point: a table for people, and JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.ondevice.device_errors import LatencyError, ParityError
from lora_export.ondevice.device_files import atomic_write_bytes
from lora_export.ondevice.text_table import aligned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.ondevice.bundle.bundle_index import Index

__all__ = ["exit_code", "make_report", "render", "write_report"]

_MODEL: Final = Path("/proc/device-tree/model")
"""What the board is called, on devices that have a device tree."""


def make_report(
    index: Index,
    runtime: Mapping[str, Any],
    *,
    engines: Mapping[str, Any],
    parity: Mapping[str, Any],
    latency: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report of a run.

    Args:
        index: The bundle's index.
        runtime: What ran, and whether that was TensorRT.
        engines: The build record of each engine.
        parity: A row for each comparison.
        latency: A row for each measurement.
    """
    return {
        "says": f"{index.name} with {runtime['says']}",
        "runtime": dict(runtime),
        "bundle": {
            "name": index.name,
            "sha256": index.digest,
            "target": index.contents.target,
            "tool": index.tool,
        },
        "machine": _machine(),
        "engines": dict(engines),
        "parity": {"graphs": dict(parity)},
        "latency": {"graphs": dict(latency)},
    }


def _machine() -> dict[str, Any]:
    model = None
    if _MODEL.is_file():
        model = _MODEL.read_text("utf-8", "replace").strip("\0\n ")
    return {
        "model": model,
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def exit_code(report: Mapping[str, Any], *, strict: bool) -> int:
    """Return 0, or the code of the gate that failed; `strict` fails what is open too."""
    for section, error in (("parity", ParityError), ("latency", LatencyError)):
        for row in report[section]["graphs"].values():
            gated = section == "parity" or report["runtime"]["tensorrt_ran"]
            undecided = strict and gated and row["verdict"] in {"ambiguous", "unverified"}
            if row["verdict"] == "fail" or undecided:
                return error.exit_code
    return 0


def render(report: Mapping[str, Any]) -> str:
    """Return the report as text: what ran, then a row for each figure."""
    lines = [report["says"]]
    parity, latency = report["parity"]["graphs"], report["latency"]["graphs"]
    engines = [
        (name, "kept" if row["kept"] else f"{row['seconds']:.1f} s", f"{row['plan']['bytes']} B")
        for name, row in report["engines"].items()
    ]
    if engines:
        lines += aligned([("engine", "built in", "size"), *engines])
    if parity:
        rows = [_parity(name, row) for name, row in parity.items()]
        lines += aligned([("parity", "verdict", "error", "tolerance", "effect", "top-1"), *rows])
    if latency:
        times = [_latency(name, row) for name, row in latency.items()]
        head = ("latency", "verdict", "ms", "base ms", "ratio", "interval", "limit", "input")
        lines += aligned([head, *times])
    reasons = [
        (name, row["reason"])
        for rows in (parity, latency)
        for name, row in rows.items()
        if row["verdict"] != "pass"
    ]
    return "\n".join(lines + aligned(reasons))


def _parity(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    metrics = row.get("metrics")
    if metrics is None:
        return (name, row["verdict"])
    effect, top1 = row["effect"], metrics["top1_agreement"]
    error = metrics["relative_l2"]
    return (
        name,
        row["verdict"],
        "-" if error is None else f"{error:.2e}",
        f"{row['tolerance']:.0e}",
        "-" if effect is None else f"{effect:.3g}",
        "-" if top1 is None else f"{top1:.4f}",
    )


def _latency(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if row.get("ratio") is None:
        return (name, row["verdict"])
    low, high = row["ratio_interval"]
    return (
        name,
        row["verdict"],
        f"{row['median_ms']:.3f}",
        f"{row['base_median_ms']:.3f}",
        f"{row['ratio']:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        f"{row['max_ratio']:.2f}",
        "x".join(map(str, row["input"])),
    )


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, complete or not at all; ``-`` is the standard output."""
    data = json.dumps(report, indent=1).encode() + b"\n"
    if str(path) == "-":
        sys.stdout.write(data.decode())
    else:
        atomic_write_bytes(path, data)
