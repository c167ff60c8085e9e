"""Bundles of tiny exports, and a Python like a device's: NumPy, ONNX Runtime and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.bundle.device_bundle import bundle_export
from lora_export.bundle.packing import pack, unpack
from lora_export.ondevice.bundle.index_values import Check, Contents, GraphSource, LatencyPlan
from lora_export.ondevice.judge.golden_checks import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "bare_site",
    "old_python",
    "pack_plain",
    "rewritten",
    "run_bundle",
    "unpacked",
]

_BARE: Final = ("numpy", "numpy.libs", "onnxruntime")
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


def bare_site(folder: Path) -> Path:
    """Return a folder for PYTHONPATH that has NumPy and ONNX Runtime of this environment only."""
    import numpy as np

    packages = Path(np.__file__).parents[1]
    folder.mkdir()
    for name in _BARE:
        if (packages / name).exists():
            (folder / name).symlink_to(packages / name)
    return folder


def old_python() -> str | None:
    """Return the Python 3.10 with NumPy 1.21.5 and ONNX Runtime that `make device-env` sets up."""
    found = os.environ.get("LORA_EXPORT_DEVICE_PYTHON") or str(
        _REPOSITORY / ".venv-device" / "bin" / "python"
    )
    return found if Path(found).is_file() else None


def run_bundle(
    bundle_dir: Path, *arguments: str, site: Path | None = None, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run the entry point of an unpacked bundle, from a folder that is not its own.

    Args:
        bundle_dir: The bundle, unpacked.
        arguments: For ``run.py``.
        site: The packages that it has; without one those of `python`.
        python: The interpreter; with a site it does without its own packages.
    """
    bare = ["-S"] if site is not None else ["-I"]
    paths = {} if site is None else {"PYTHONPATH": str(site)}
    return subprocess.run(
        [python, *bare, str(bundle_dir / "run.py"), *arguments],
        cwd=bundle_dir.parent,
        env={"PATH": os.environ["PATH"], **paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def unpacked(export: Path, folder: Path, **settings: Any) -> Path:
    """Return a bundle of an export for a Jetson, unpacked."""
    packed = bundle_export(export, "jetson-orin", folder / "bundle.tar", **settings)
    unpack(packed.path, folder / "bundle")
    return folder / "bundle"


def pack_plain(path: Path, **made: bytes) -> Path:
    """Pack a small bundle of files that mean nothing; return its path."""
    files = {"a.onnx": b"graph", "weights/a.bin": b"weights " * 100, **made}
    reading = Reading(("logits",), per_token=False, choices=True, last=False)
    contents = Contents(
        target="jetson-orin",
        dtype="float32",
        base_fingerprint="0" * 64,
        graphs={"a": GraphSource("a.onnx", None, "none")},
        checks={"base": Check("a", reading, reason="none")},
        latency=LatencyPlan(None, 10, 1.05, "none"),
    )
    pack(path, "plain", "test", contents, files={}, made=files)
    return path


def rewritten(
    path: Path,
    change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None],
    *,
    more: tuple[tuple[tarfile.TarInfo, bytes], ...] = (),
) -> Path:
    """Return a copy of an archive as somebody else would write it, each member changed.

    Args:
        path: The archive.
        change: Returns a member and its data as they shall be; None leaves it out.
        more: Members that follow.
    """
    import io

    other = path.with_name("rewritten.tar")
    with (
        tarfile.open(path) as source,
        tarfile.open(other, "w", format=tarfile.GNU_FORMAT) as target,
    ):
        for member in source.getmembers():
            stream: Any = source.extractfile(member)
            changed = change(member, stream.read())
            if changed is not None:
                changed[0].size = len(changed[1])
                target.addfile(changed[0], io.BytesIO(changed[1]))
        for member, data in more:
            target.addfile(member, io.BytesIO(data))
    return other


def read_report(bundle_dir: Path, runtime: str = "onnxruntime") -> dict[str, Any]:
    """Return the report that a run left in a bundle."""
    table: dict[str, Any] = json.loads((bundle_dir / f"report.{runtime}.json").read_text("utf-8"))
    return table


def copied(bundle_dir: Path, folder: Path) -> Path:
    """Return a copy of a bundle that may be spoiled."""
    shutil.copytree(bundle_dir, folder)
    return folder
