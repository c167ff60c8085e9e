"""Ship LoRA adapters: merged, swappable or batched ONNX graphs that compute base + adapter.

The public API; docs/stability.md says what may change. A name is loaded from the module that
defines it when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from lora_export.core.version import VERSION

if TYPE_CHECKING:  # the same names as in _HOMES, for type checkers
    from lora_export.commands.add import add
    from lora_export.commands.bench import Benchmark, bench
    from lora_export.commands.build import merge_and_build
    from lora_export.commands.convert import Converted, convert
    from lora_export.commands.inspect.describe_adapter import AdapterReport
    from lora_export.commands.inspect.describe_checkpoint import CheckpointReport
    from lora_export.commands.inspect.describe_export import ExportReport
    from lora_export.commands.inspect.inspect_any import inspect
    from lora_export.commands.inspect.inspect_path import FitReport, PairReport
    from lora_export.commands.layout import RuntimeLayout, layout
    from lora_export.commands.merge import Merge, merge_checkpoint, unmerge_checkpoint
    from lora_export.commands.outcome import Outcome, PackedBundle, Reports
    from lora_export.commands.recipe import Recipe, load_recipe
    from lora_export.commands.recipe_sections import (
        BundleSpec,
        CombineSpec,
        LatencySpec,
        QuantizeSpec,
        TritonSpec,
        VerifySpec,
    )
    from lora_export.commands.remove import remove
    from lora_export.commands.verify import verify
    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.errors import (
        AdapterError,
        BundleError,
        CheckpointError,
        ExportDirectoryError,
        FixedLengthError,
        HubError,
        InputError,
        LatencyError,
        LoraExportError,
        MissingRuntimeError,
        ParityError,
        StorageError,
        TiedParameterError,
        UnsupportedError,
        UsageError,
    )
    from lora_export.core.manifest import Manifest
    from lora_export.core.merge_record import MergeRecord
    from lora_export.core.modes import Mode
    from lora_export.core.progress import Progress
    from lora_export.core.reports.fidelity_report import FidelityReport
    from lora_export.core.reports.graph_report import GraphReport
    from lora_export.core.reports.latency_report import LatencyReport
    from lora_export.core.reports.parity_report import ParityReport
    from lora_export.core.reports.quantization_report import QuantizationReport
    from lora_export.latency.bench_report import BenchReport
    from lora_export.layouts.write_layouts import WrittenLayout
    from lora_export.runtime.session import Session, open_export
    from lora_export.triton.repository import ModelRepository

__all__ = [
    "AdapterError",
    "AdapterReport",
    "AdapterSpec",
    "BenchReport",
    "Benchmark",
    "BundleError",
    "BundleSpec",
    "CheckpointError",
    "CheckpointReport",
    "CombineSpec",
    "Converted",
    "ExportDirectoryError",
    "ExportReport",
    "FidelityReport",
    "FitReport",
    "FixedLengthError",
    "GraphReport",
    "HubError",
    "InputError",
    "LatencyError",
    "LatencyReport",
    "LatencySpec",
    "LoraExportError",
    "Manifest",
    "Merge",
    "MergeRecord",
    "MissingRuntimeError",
    "Mode",
    "ModelRepository",
    "Outcome",
    "PackedBundle",
    "PairReport",
    "ParityError",
    "ParityReport",
    "Progress",
    "QuantizationReport",
    "QuantizeSpec",
    "Recipe",
    "Reports",
    "RuntimeLayout",
    "Session",
    "StorageError",
    "TiedParameterError",
    "TritonSpec",
    "UnsupportedError",
    "UsageError",
    "VerifySpec",
    "WrittenLayout",
    "__version__",
    "add",
    "bench",
    "convert",
    "inspect",
    "layout",
    "load_recipe",
    "merge_and_build",
    "merge_checkpoint",
    "open_export",
    "remove",
    "unmerge_checkpoint",
    "verify",
]

__version__: Final = VERSION

_HOMES: Final = {
    "commands.add": ("add",),
    "commands.bench": ("Benchmark", "bench"),
    "commands.build": ("merge_and_build",),
    "commands.convert": ("Converted", "convert"),
    "commands.inspect.describe_adapter": ("AdapterReport",),
    "commands.inspect.describe_checkpoint": ("CheckpointReport",),
    "commands.inspect.describe_export": ("ExportReport",),
    "commands.inspect.inspect_any": ("inspect",),
    "commands.inspect.inspect_path": ("FitReport", "PairReport"),
    "commands.layout": ("RuntimeLayout", "layout"),
    "commands.merge": ("Merge", "merge_checkpoint", "unmerge_checkpoint"),
    "commands.outcome": ("Outcome", "PackedBundle", "Reports"),
    "commands.recipe": ("Recipe", "load_recipe"),
    "commands.recipe_sections": (
        "BundleSpec", "CombineSpec", "LatencySpec", "QuantizeSpec", "TritonSpec", "VerifySpec",
    ),
    "commands.remove": ("remove",),
    "commands.verify": ("verify",),
    "core.adapter_spec": ("AdapterSpec",),
    "core.errors": (
        "AdapterError", "BundleError", "CheckpointError", "ExportDirectoryError",
        "FixedLengthError", "HubError", "InputError", "LatencyError", "LoraExportError",
        "MissingRuntimeError", "ParityError", "StorageError", "TiedParameterError",
        "UnsupportedError", "UsageError",
    ),
    "core.manifest": ("Manifest",),
    "core.merge_record": ("MergeRecord",),
    "core.modes": ("Mode",),
    "core.progress": ("Progress",),
    "core.reports.fidelity_report": ("FidelityReport",),
    "core.reports.graph_report": ("GraphReport",),
    "core.reports.latency_report": ("LatencyReport",),
    "core.reports.parity_report": ("ParityReport",),
    "core.reports.quantization_report": ("QuantizationReport",),
    "latency.bench_report": ("BenchReport",),
    "layouts.write_layouts": ("WrittenLayout",),
    "runtime.session": ("Session", "open_export"),
    "triton.repository": ("ModelRepository",),
}  # fmt: skip
"""The public names, by the module that defines them."""


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        msg = f"module 'lora_export' has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(importlib.import_module(f"lora_export.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)
