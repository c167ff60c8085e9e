"""``preflight``: whether TensorRT can build a graph, without TensorRT and without a GPU.

The graph is walked, and what the parser of a version refuses or treats in a way of its own is
named, with what to do next: `operators`, `interface`, `memory_need` and `quantized_weights` hold
the checks. What is said
comes from tables; only the parser itself has the last word, and where a library is installed
`parser_check` asks it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import read_manifest
from lora_export.core.targets import require_engine_target
from lora_export.engines.dynamic_axes import check_axes
from lora_export.engines.engine_options import library_for
from lora_export.engines.findings import Finding, ordered
from lora_export.engines.graph_view import view
from lora_export.engines.interface import check_optional_inputs, check_precisions, check_types
from lora_export.engines.jobs import profiles_for
from lora_export.engines.memory_need import Memory, check_memory, estimate_memory
from lora_export.engines.operators import check_operators, check_opset, operator_counts
from lora_export.engines.parser_check import check_with_parser
from lora_export.engines.parser_table import RTX_FOLLOWS, parser_of, version_of
from lora_export.engines.quantized_weights import check_quantized, check_scales
from lora_export.exports.integrity_checks import require_files
from lora_export.graph.adapters.required_inputs import without_defaults
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.libraries import (
    TENSORRT,
    TENSORRT_RTX,
    library_of,
    library_row,
    library_title,
)
from lora_export.ondevice.trt.versions import release

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.errors import LoraExportError
    from lora_export.core.manifest import Manifest
    from lora_export.core.targets import Target
    from lora_export.engines.profiles import AxisRange
    from lora_export.ondevice.trt.build_settings import Profile

__all__ = ["GraphReport", "Preflight", "check_graph", "preflight"]


@dataclass(frozen=True)
class GraphReport:
    """The findings about one ONNX file.

    Attributes:
        graph: The graph's name in the export.
        file: The file.
        opset: Its opset.
        operators: How often each operator stands in it.
        memory: The estimate.
        findings: The gravest first.
    """

    graph: str
    file: str
    opset: int
    operators: Mapping[str, int]
    memory: Memory
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Preflight:
    """The findings about the graphs of an export.

    Attributes:
        target: Where the engines are to run.
        library: The library that is to build them: ``tensorrt`` or ``tensorrt-rtx``.
        tensorrt: The version of it that was asked about.
        parser: The installed library that parsed the graphs, with its version; None where none did.
        findings: What concerns all graphs.
        graphs: A report for each ONNX file.
    """

    target: str
    library: str
    tensorrt: str
    parser: str | None
    findings: tuple[Finding, ...]
    graphs: tuple[GraphReport, ...]

    def of_severity(self, severity: str) -> list[tuple[str, Finding]]:
        """Return the findings of one severity, each with the file that it is about, if any."""
        rows = [("", found) for found in self.findings]
        rows += [(each.file, found) for each in self.graphs for found in each.findings]
        return [row for row in rows if row[1].severity == severity]


def preflight(
    export_dir: Path,
    target_name: str,
    *,
    graphs: Sequence[str] = (),
    tensorrt: str | None = None,
    profiles: Sequence[Mapping[str, AxisRange]] = (),
    memory_gib: float | None = None,
    builder: str | None = None,
    parser: bool = False,
) -> Preflight:
    """Check graphs of an export directory for a target.

    Args:
        export_dir: The export directory.
        target_name: A row of `core.targets` that has engines.
        graphs: Names of graphs in the manifest; by default all that can be deployed.
        tensorrt: The version of the library; the oldest that the target's software brings by
            default, of TensorRT for RTX the oldest that is supported.
        profiles: What the user says of dynamic axes, as for a build; else the defaults.
        memory_gib: The memory of the device, where the target's come in several sizes.
        builder: The library that is to build; of the target ``rtx`` TensorRT for RTX by default,
            else TensorRT.
        parser: Whether the installed library parses the graphs too.

    Raises:
        DeviceError: The library that is to parse is missing, is not supported or does not start.
        UsageError: There is no such target, graph, version or axis, or no such memory.
        UnsupportedError: The version is older than what is known here, or a graph that is named
            has parameters without values.
        ExportDirectoryError: The directory is none of ours, or a graph is not what was written.
    """
    library = library_for(target_name, builder)
    target = require_engine_target(target_name, rtx=library == TENSORRT_RTX)
    if memory_gib is not None and not 0 < memory_gib < math.inf:
        msg = f"{memory_gib} GiB is not the memory of a device"
        raise UsageError(msg, hint="Give the GiB of the device: --memory 8.")
    version = tensorrt or _default_version(target, library)
    parser_of(version, library)
    # that the library is missing is known before anything is read
    installed = _installed(library) if parser else None
    manifest = read_manifest(export_dir)
    reports = []
    for name in _chosen(graphs, manifest):
        files = manifest.graphs[name].graph_files
        require_files(export_dir, manifest, files, hashed=True)
        for file in files:
            path = resolve_inside(export_dir, file)
            data = read_graph(path)
            made, why = _profiles(export_dir, manifest, file, data, profiles)
            found = check_graph(
                data, target, version,
                library=library, profiles=made, memory_gib=memory_gib, why=why,
            )  # fmt: skip
            if parser:
                required = without_defaults(data)
                asked = check_with_parser(library, required, path, found.findings)
                found = replace(found, findings=ordered([*asked, *found.findings]))
            reports.append(replace(found, graph=name, file=file))
    scales = check_scales(manifest.base.quantization, library)
    general = ordered([*scales, *_of_version(target, library, version)])
    return Preflight(target.name, library, version, installed, general, tuple(reports))


def _installed(library: str) -> str:
    """Return the name and version of an installed library."""
    module = import_library(library)
    return f"{library_title(library_of(module))} {module.__version__}"


def _default_version(target: Target, library: str) -> str:
    """Return the oldest version of a library that builds for a target."""
    row = library_row(library)
    return release(row.oldest) if row.builds_ahead else target.tensorrt[0]


def check_graph(
    onnx_bytes: bytes,
    target: Target,
    tensorrt: str,
    *,
    library: str = TENSORRT,
    profiles: Sequence[Profile] = (),
    memory_gib: float | None = None,
    why: LoraExportError | None = None,
) -> GraphReport:
    """Check one graph for a target and a version of the library that is to build its engine.

    Args:
        onnx_bytes: The graph; its weights may lie in other files.
        target: Where the engine is to run.
        tensorrt: The version of the library.
        library: TensorRT, or TensorRT for RTX.
        profiles: What the engine is to be built for.
        memory_gib: The memory of the device, if it is known.
        why: What kept profiles from being made, where there are none.

    Raises:
        ExportDirectoryError: The graph cannot be parsed.
        UsageError: `tensorrt` is not a version.
        UnsupportedError: The version is older than what is known here.
    """
    parser = parser_of(tensorrt, library)
    model = parse_onnx(onnx_bytes)
    seen = view(parse_onnx(without_defaults(onnx_bytes)))
    memory = estimate_memory(seen, profiles)
    findings = [
        *check_opset(seen, parser),
        *check_operators(seen, parser),
        *check_quantized(seen, parser, target),
        *check_precisions(seen, target),
        *check_axes(seen, profiles, why),
        *check_memory(memory, target, memory_gib),
        *check_types(seen),
        *check_optional_inputs(model),
    ]
    return GraphReport("", "", seen.opset, operator_counts(seen), memory, ordered(findings))


def _chosen(wanted: Sequence[str], manifest: Manifest) -> list[str]:
    """Return the graphs that are checked: those named, else all that can be deployed."""
    for name in wanted:
        if name not in manifest.graphs:
            msg = f"the export has no graph {name!r}"
            raise UsageError(msg, hint=f"Its graphs: {', '.join(manifest.graphs)}.")
        if missing := manifest.graphs[name].missing:
            msg = f"the graph {name!r} has no values for {missing[0]!r}"
            raise UnsupportedError(msg, hint="Only an adapter brings them: check its graph.")
    deployable = [name for name, record in manifest.graphs.items() if not record.missing]
    return list(dict.fromkeys(wanted)) or deployable


def _profiles(
    export_dir: Path,
    manifest: Manifest,
    file: str,
    onnx_bytes: bytes,
    given: Sequence[Mapping[str, AxisRange]],
) -> tuple[tuple[Profile, ...], UsageError | None]:
    """Return the profiles of a graph, or why the defaults do not cover it: that is a finding.

    Raises:
        UsageError: What the user gave does not fit the graph.
    """
    try:
        return profiles_for(export_dir, manifest, file, onnx_bytes, given), None
    except UsageError as error:
        if given:
            raise
        return (), error


def _of_version(target: Target, library: str, version: str) -> list[Finding]:
    """Return a finding for a version that the target's software does not have.

    Of TensorRT for RTX, which has no tables of its own, it says which ones are read.
    """
    if library == TENSORRT_RTX:
        subject = f"{library_title(library)} {version}"
        message = (
            f"checked by the tables of TensorRT {RTX_FOLLOWS}, whose operators its parser reads"
        )
        return [Finding("note", "tensorrt-version", subject, message)]
    numbers = {version_of(each): each for each in target.tensorrt}
    if version_of(version) in numbers:
        return []
    offered = ", ".join(
        f"{each} ({software})" if each not in software else each
        for each, software in zip(target.tensorrt, target.software, strict=True)
    )
    message = f"the software of {target.name} is known to bring {offered}"
    return [Finding("note", "tensorrt-version", f"TensorRT {version}", message)]
