"""The environment of a figure (machine, versions, commit), and that of the peers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
PEERS_REQUIREMENTS: Final = ROOT / "bench" / "peers.txt"
PEERS_FOLDER: Final = ROOT / "build" / "peers"

_OURS: Final = (
    "lora-export", "torch", "transformers", "accelerate", "numpy", "onnx", "onnx-ir", "onnxscript",
)  # fmt: skip
_PEERS: Final = (
    "optimum-onnx", "optimum", "transformers", "peft", "torch", "numpy", "onnx", "onnxruntime",
)  # fmt: skip
_MEBI: Final = 1 << 20


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on, and nothing that names the machine."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MEBI,
        "architecture": platform.machine(),
        "os": _os_name(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def describe_commit() -> dict[str, Any]:
    """Return the commit, and whether the package differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = bool(_git("status", "--porcelain", "--", "lora_export"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None}
    return {"commit": commit, "package_differs_from_commit": changed}


def own_versions() -> dict[str, str | None]:
    """Return the versions of our libraries."""
    return {name: _version(name) for name in _OURS}


def peer_versions(python: Path, packages: Sequence[str] = _PEERS) -> dict[str, str | None]:
    """Return the versions of the libraries in a peers' environment."""
    code = (
        "import json, sys\nfrom importlib import metadata\n"
        "print(json.dumps({name: metadata.version(name) for name in sys.argv[1:]}))"
    )
    output = subprocess.run(
        [str(python), "-c", code, *packages], check=True, capture_output=True, text=True
    ).stdout
    versions: dict[str, str | None] = json.loads(output)
    return versions


def ensure_peers(given: Path | None, which: str | None = None) -> Path:
    """Return the peers' interpreter: `given`, or that of ``build/peers``, made anew if need be.

    Args:
        given: An interpreter that is taken as it is.
        which: A peer with an environment of its own, made from ``bench/peers-NAME.txt``.
    """
    suffix = f"-{which}" if which else ""
    folder = PEERS_FOLDER.with_name(f"{PEERS_FOLDER.name}{suffix}")
    requirements = PEERS_REQUIREMENTS.with_stem(f"{PEERS_REQUIREMENTS.stem}{suffix}")
    if given is not None:
        if not given.is_file():
            sys.exit(f"error: no interpreter at {given}; check --peers-python")
        return given.absolute()  # not resolved: a venv's python is a link out of it
    python, stamp = folder / "bin" / "python", folder / ".installed"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    with contextlib.suppress(OSError):
        if stamp.read_text("utf-8") == digest:
            return python
    print(f"setting up the peers' environment in build/{folder.name}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), *install, "-r", str(requirements)], check=True)
    stamp.write_text(digest, "utf-8")
    return python


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _field(path: str, name: str) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def _os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()
