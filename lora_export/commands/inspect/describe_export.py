"""An export directory, described from its manifest and compared with its files."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lora_export.commands.inspect.counts import INDEX_DTYPES
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.integrity import audit
from lora_export.exports.quantized_summary import QuantizedSummary, quantized_summary
from lora_export.exports.stored_values import parameters_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.graph_forms import GraphForm
    from lora_export.core.manifest import AdapterRecord, BaseRecord, Manifest
    from lora_export.core.modes import Mode
    from lora_export.core.parameters import Parameter
    from lora_export.core.progress import Progress

__all__ = ["ExportReport", "GraphRow", "export_report", "present_parameters"]


@dataclass(frozen=True)
class GraphRow:
    """One graph: `weights_bytes` are those of all the files that it reads.

    Of an encoder-decoder, `encoder` is the second file, and `onnx_bytes` counts both. `form` is
    None for ONNX's own operators.
    """

    mode: Mode
    verification: str
    opset: int
    onnx: str
    onnx_bytes: int
    own_weights_bytes: int
    weights_bytes: int
    missing: tuple[str, ...]
    encoder: str | None = None
    form: GraphForm | None = None


@dataclass(frozen=True)
class ExportReport:
    """An export directory; `problems` is empty where its files are what the manifest says.

    `quantized` counts the weights of the base that are stored as integers; None where none are.
    """

    kind: str
    path: str
    tool: str
    base: BaseRecord
    parameters: int
    bytes: int
    graphs: Mapping[str, GraphRow]
    adapters: Mapping[str, AdapterRecord]
    files: int
    hashed: bool
    problems: tuple[str, ...]
    unlisted: tuple[str, ...]
    quantized: QuantizedSummary | None = None


def export_report(
    path: Path, manifest: Manifest, *, hashed: bool, progress: Progress
) -> ExportReport:
    """Describe the export at `path`; its files are compared by SHA-256 only if `hashed`."""
    found = audit(path, manifest, hashed=hashed, progress=progress)
    counted = [p for p in present_parameters(manifest) if p.dtype not in INDEX_DTYPES]
    return ExportReport(
        kind="export",
        path=str(path),
        tool=manifest.tool,
        base=manifest.base,
        parameters=sum(prod(parameter.shape) for parameter in counted),
        bytes=sum(found.sizes_bytes.values()),
        graphs=_graph_rows(manifest, found.sizes_bytes),
        adapters=dict(manifest.adapters),
        files=len(manifest.files),
        hashed=found.hashed,
        problems=found.problems,
        unlisted=found.unlisted,
        quantized=quantized_summary(manifest),
    )


def present_parameters(manifest: Manifest) -> list[Parameter]:
    """Return the parameters of the base graph, without those that only adapters have."""
    base = manifest.graphs.get(BASE_GRAPH)
    missing = set(base.missing) if base else set()
    return [each for each in parameters_of(manifest) if each.name not in missing]


def _graph_rows(manifest: Manifest, sizes_bytes: Mapping[str, int]) -> dict[str, GraphRow]:
    base = manifest.graphs.get(BASE_GRAPH)
    shared = set(base.weights) if base else set()
    return {
        name: GraphRow(
            mode=graph.mode,
            verification=graph.verification,
            opset=graph.opset,
            onnx=graph.onnx,
            onnx_bytes=sum(sizes_bytes.get(file, 0) for file in graph.graph_files),
            own_weights_bytes=sum(
                sizes_bytes.get(file, 0)
                for file in graph.weights
                if graph is base or file not in shared
            ),
            weights_bytes=sum(sizes_bytes.get(file, 0) for file in graph.weights),
            missing=tuple(graph.missing),
            encoder=graph.encoder.onnx if graph.encoder else None,
            form=graph.form,
        )
        for name, graph in manifest.graphs.items()
    }
