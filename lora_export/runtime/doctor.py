"""``doctor``: what is installed, what each missing part disables, and how to get it.

Versions come from package metadata, so that neither torch nor transformers is imported; ONNX
Runtime is, for its execution providers, and TensorRT for the version of its libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.installation import install_command
from lora_export.core.supported_versions import (
    CORE,
    installed_version,
    problem_of,
    unsupported,
    untried,
)
from lora_export.core.version import VERSION
from lora_export.runtime.machine import Machine, probe_machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Cache", "Diagnosis", "Package", "diagnose"]

_EXPORT_PYTHON: Final = (3, 11)


@dataclass(frozen=True)
class _Row:
    """A package to look for.

    Attributes:
        module: What is imported.
        distributions: Names it is installed under; they exclude one another.
        costs: What needs it: that does not work without.
        get: How to install it.
        core: Whether it comes with the package itself.
    """

    module: str
    distributions: tuple[str, ...]
    costs: str
    get: str
    core: bool = False


_EXPORT: Final = install_command("export")
_METRICS: Final = install_command("metrics")
_TRACING: Final = "merge-and-build and export of an architecture without a template or cached graph"
_BROKEN: Final = "every command"
_CORE: Final = install_command()
_PACKAGES: Final = (
    _Row("numpy", ("numpy",), _BROKEN, _CORE, core=True),
    _Row("onnx", ("onnx",), _BROKEN, _CORE, core=True),
    _Row("torch", ("torch",), f"{_TRACING}; pytorch_model.bin; parity against PEFT", _EXPORT),
    _Row("transformers", ("transformers",), f"{_TRACING}; parity against PEFT", _EXPORT),
    _Row("peft", ("peft",), "parity against PEFT, the reference of verification", _EXPORT),
    _Row("accelerate", ("accelerate",), _TRACING, _EXPORT),
    _Row("onnxscript", ("onnxscript",), _TRACING, _EXPORT),
    _Row("onnx_ir", ("onnx-ir",), _TRACING, _EXPORT),
    _Row(
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "verification and latency; graphs stay unverified",
        f"{install_command('cpu')}, or [gpu] for CUDA; never both",
    ),
    _Row(
        "tensorrt",
        ("tensorrt",),
        "TensorRT engines",
        f"{install_command('tensorrt')}; on a Jetson it comes with JetPack",
    ),
    _Row(
        "tensorrt_rtx",
        ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
        "engines of TensorRT for RTX, built on any x86-64 machine",
        install_command("rtx"),
    ),
    _Row(
        "pynvml",
        ("nvidia-ml-py",),
        "clocks, energy and memory of NVIDIA's GPUs in bench and doctor",
        install_command("nvml"),
    ),
    _Row("rouge_score", ("rouge-score",), "verify --metric rouge", _METRICS),
    _Row("sacrebleu", ("sacrebleu",), "verify --metric bleu", _METRICS),
    _Row("polygraphy", ("polygraphy",), "TensorRT engines", "pip install polygraphy"),
    _Row(
        "tritonclient",
        ("tritonclient",),
        "requests to a Triton server",
        "pip install 'tritonclient[all]'",
    ),
)


@dataclass(frozen=True)
class Package:
    """A package: `installed` has each distribution's version, empty where it is missing."""

    module: str
    installed: dict[str, str]
    costs: str
    get: str
    problem: str | None


@dataclass(frozen=True)
class Cache:
    """The graph cache, and the free space on its disk."""

    path: str
    graphs: int
    bytes: int
    free_bytes: int | None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `diagnose` found.

    Attributes:
        compiled: Whether the compiled module ``lora_export.core._kernels`` was built; without it
            NumPy converts two-byte floats and quantizes, more slowly.
        untried: Libraries in a newer version than the tests were run with; they may well work.
    """

    lora_export: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    execution_providers: tuple[str, ...]
    tensorrt: str | None
    tensorrt_rtx: str | None
    compiled: bool
    machine: Machine
    cache: Cache | None
    problems: tuple[str, ...]
    untried: tuple[str, ...] = ()


def diagnose() -> Diagnosis:
    """Look at packages, machine and cache; whatever cannot be found out is None or empty."""
    providers, provider_problem = _providers()
    tensorrt, tensorrt_problem = _version_of("tensorrt")
    tensorrt_rtx, rtx_problem = _version_of("tensorrt_rtx")
    problems = {
        "onnxruntime": provider_problem,
        "tensorrt": tensorrt_problem,
        "tensorrt_rtx": rtx_problem,
    }
    packages = tuple(_package(row, problems.get(row.module)) for row in _PACKAGES)
    return Diagnosis(
        lora_export=VERSION,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        execution_providers=providers,
        tensorrt=tensorrt,
        tensorrt_rtx=tensorrt_rtx,
        compiled=_is_there("lora_export.core._kernels"),
        machine=probe_machine(),
        cache=_cache(),
        problems=(
            *(f"{p.module}: {p.problem}" for p in packages if p.problem),
            *unsupported(each for each in CORE if each not in _listed()),
        ),
        untried=tuple(untried()),
    )


def _listed() -> set[str]:
    """Return the distributions that have a row of their own."""
    return {name for row in _PACKAGES for name in row.distributions}


def _package(row: _Row, problem: str | None) -> Package:
    versions = {name: installed_version(name) for name in row.distributions}
    installed = {name: version for name, version in versions.items() if version}
    there = _is_there(row.module)
    if len(installed) > 1:
        problem = (
            f"{' and '.join(installed)} install the same module, and the one installed last won; "
            f"pip uninstall {' '.join(installed)}, then install one of them"
        )
    elif installed and not there:
        problem = "its metadata is installed, but the module is not; install it again"
    elif outdated := [found for each in installed.items() if (found := problem_of(*each))]:
        problem = outdated[0]
    elif there and not installed:
        installed = {row.module: "unknown version"}
    return Package(row.module, installed if there else {}, row.costs, _how_to_get(row), problem)


def _how_to_get(row: _Row) -> str:
    if row.get == _EXPORT and sys.version_info < _EXPORT_PYTHON:
        needed = ".".join(map(str, _EXPORT_PYTHON))
        return f"{row.get}, with Python {needed} or newer"
    return row.get


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _imported(module: str) -> tuple[Any, str | None]:
    """Import `module`; return it, or None and what went wrong, if it is there at all."""
    if not _is_there(module):
        return None, None
    try:
        return importlib.import_module(module), None
    except Exception as error:  # noqa: BLE001  (a broken package is a finding, whatever it raises)
        first = next(iter(str(error).splitlines()), "")
        return None, f"cannot be imported: {type(error).__name__}: {first}"


def _providers() -> tuple[tuple[str, ...], str | None]:
    """Return ONNX Runtime's execution providers, the preferred one first."""
    runtime, problem = _imported("onnxruntime")
    try:
        return (() if runtime is None else tuple(runtime.get_available_providers())), problem
    except Exception as error:  # noqa: BLE001  (an empty namespace package, a broken library)
        return (), f"cannot list its providers: {error}"


def _version_of(module: str) -> tuple[str | None, str | None]:
    """Return the version that a library with TensorRT's API says of itself, or what is wrong."""
    runtime, problem = _imported(module)
    version = getattr(runtime, "__version__", None)
    return (str(version) if version else None), problem


def _cache() -> Cache | None:
    try:
        from lora_export.graph.graph_cache import cache_root

        root = cache_root()
        files = [path for path in root.rglob("*") if path.is_file()]
        graphs = sum(path.name == "graph.onnx" for path in files)
        return Cache(str(root), graphs, sum(path.stat().st_size for path in files), _free(root))
    except (ImportError, OSError, RuntimeError):
        return None  # a broken installation, no home, files that went away meanwhile


def _free(folder: Path) -> int | None:
    existing: Sequence[Path] = [path for path in (folder, *folder.parents) if path.exists()]
    return shutil.disk_usage(existing[0]).free if existing else None
