"""The report of a bundle's entry point: a table for people, and JSON."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np

from lora_export.ondevice.device_errors import LatencyError, ParityError
from lora_export.ondevice.device_files import atomic_write_bytes
from lora_export.ondevice.printable import json_text
from lora_export.ondevice.text_table import aligned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.ondevice.bundle.bundle_index import Index
    from lora_export.ondevice.bundle.runtimes import BundledRecord, RuntimeRow
    from lora_export.ondevice.bundle.verify_and_measure import LatencyCheck
    from lora_export.ondevice.judge.golden_checks import CheckRow
    from lora_export.ondevice.judge.tolerances import Verdict

__all__ = ["DeviceReport", "exit_code", "make_report", "render", "write_report"]

_MODEL: Final = Path("/proc/device-tree/model")
"""What the board is called, on devices that have a device tree."""


class BundleRow(TypedDict):
    """The bundle."""

    name: str
    sha256: str
    target: str
    tool: str


class MachineRow(TypedDict):
    """The device; `model` is None without a device tree."""

    model: str | None
    machine: str
    system: str
    release: str
    processors: int | None
    python: str
    numpy: str


class ParityRows(TypedDict):
    """The comparisons, by name."""

    graphs: dict[str, CheckRow]


class LatencyRows(TypedDict):
    """The measurements, by name."""

    graphs: dict[str, LatencyCheck]


class DeviceReport(TypedDict):
    """``report.RUNTIME.json``."""

    says: str
    runtime: RuntimeRow
    bundle: BundleRow
    machine: MachineRow
    engines: dict[str, BundledRecord]
    parity: ParityRows
    latency: LatencyRows


def make_report(
    index: Index,
    runtime: RuntimeRow,
    *,
    engines: Mapping[str, BundledRecord],
    parity: Mapping[str, CheckRow],
    latency: Mapping[str, LatencyCheck],
) -> DeviceReport:
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
        "runtime": runtime,
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


def _machine() -> MachineRow:
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


def exit_code(report: DeviceReport, *, strict: bool) -> int:
    """Return 0, or the code of the gate that failed; `strict` fails what is open too."""
    parity = [row["verdict"] for row in report["parity"]["graphs"].values()]
    if _fails(parity, strict=strict):
        return ParityError.exit_code
    latency = [row["verdict"] for row in report["latency"]["graphs"].values()]
    if _fails(latency, strict=strict and report["runtime"]["tensorrt_ran"]):
        return LatencyError.exit_code
    return 0


def _fails(verdicts: Sequence[Verdict], *, strict: bool) -> bool:
    failing = {"fail", "ambiguous", "unverified"} if strict else {"fail"}
    return not failing.isdisjoint(verdicts)


def render(report: DeviceReport) -> list[str]:
    """Return the report as lines: what ran, then a row for each figure."""
    lines = [report["says"]]
    parity, latency = report["parity"]["graphs"], report["latency"]["graphs"]
    engines = [(name, _made_in(row), f"{row['plan']['bytes']} B")
               for name, row in report["engines"].items()]  # fmt: skip
    if engines:
        compiled = any(row["compile_seconds"] is not None for row in report["engines"].values())
        made = "compiled in" if compiled else "built in"
        lines += aligned([("engine", made, "size"), *engines])
    if parity:
        rows = [_parity(name, row) for name, row in parity.items()]
        lines += aligned([("parity", "verdict", "error", "tolerance", "effect", "top-1"), *rows])
    if latency:
        times = [_latency(name, row) for name, row in latency.items()]
        head = ("latency", "verdict", "ms", "base ms", "ratio", "interval", "limit", "input")
        lines += aligned([head, *times])
    reasons = [(name, row["reason"]) for name, row in parity.items() if row["verdict"] != "pass"]
    reasons += [(name, row["reason"]) for name, row in latency.items() if row["verdict"] != "pass"]
    return lines + aligned(reasons)


def _made_in(row: BundledRecord) -> str:
    seconds = row["compile_seconds"]
    return "kept" if row["kept"] else f"{row['seconds'] if seconds is None else seconds:.1f} s"


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


def write_report(path: Path, report: DeviceReport) -> None:
    """Write a report, complete or not at all; ``-`` is the standard output."""
    text = f"{json_text(report)}\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        atomic_write_bytes(path, text.encode())
