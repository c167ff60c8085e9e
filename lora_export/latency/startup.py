"""Start-up of a graph alone in a new process: the time to open it, and its memory.

Peak memory is the kernel's high-water mark of that process (``VmHWM``), which begins anew with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.cgroups import read_text
from lora_export.core.errors import ExportDirectoryError
from lora_export.latency.bench_report import Startup
from lora_export.ondevice.file_opening import real_path

if TYPE_CHECKING:
    from lora_export.latency.points import Point, Source

__all__ = ["main", "measure_startup"]

_STATUS: Final = Path("/proc/self/status")
_CODE: Final = "from lora_export.latency.startup import main; main()"
_PACKAGE_PARENT: Final = Path(__file__).resolve().parents[3]
_KIBI: Final = 1024


def measure_startup(
    source: Source, graph: str, runner: str, point: Point, *, threads: int, seed: int
) -> Startup:
    """Open a graph in a process of its own, and run it once at `point`.

    Raises:
        ExportDirectoryError: The process failed.
    """
    asked = {
        "export_dir": str(real_path(source.export_dir)),
        "config": dict(source.config), "graph": graph,
        "runner": runner, "point": list(astuple(point)),
        "threads": threads, "seed": seed,
    }  # fmt: skip
    done = subprocess.run(  # noqa: S603  (this interpreter, our own module)
        [sys.executable, "-c", _CODE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=_PACKAGE_PARENT,  # where the package is found, and nothing of the export
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        msg = f"{graph!r} could not be opened in a process of its own: {last}"
        raise ExportDirectoryError(
            msg, hint="Is there enough memory? Measure without: --no-startup"
        )
    return Startup.model_validate_json(done.stdout.splitlines()[-1])


def main() -> None:
    """Do what stdin asks for, and print a `Startup`."""
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    from lora_export.core.manifest import read_manifest
    from lora_export.latency.points import Point, Source
    from lora_export.latency.subjects import open_graph, require_runner
    from lora_export.runtime.nvml import nvml_devices

    export_dir = Path(asked["export_dir"])
    runner = require_runner(asked["runner"])
    source = Source(export_dir, read_manifest(export_dir), asked["config"])
    point = Point(*asked["point"])
    imported_bytes = _status_bytes("VmRSS")
    start = time.perf_counter_ns()
    bind = open_graph(source, asked["graph"], runner, threads=asked["threads"])
    opened = time.perf_counter_ns()
    run = bind(point, asked["seed"])
    before = time.perf_counter_ns()
    run()
    ran = time.perf_counter_ns()
    with nvml_devices() as devices:
        used = [each.used_by_this_process_bytes() for each in devices]
    taken = [each for each in used if each is not None]
    found = Startup(
        session_ms=(opened - start) / 1e6,
        first_run_ms=(ran - before) / 1e6,
        peak_bytes=_status_bytes("VmHWM"),
        imported_bytes=imported_bytes,
        device_bytes=sum(taken) if taken else None,
    )
    sys.stdout.write(found.model_dump_json() + "\n")


def _status_bytes(field: str) -> int | None:
    for line in (read_text(_STATUS) or "").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * _KIBI
    return None
