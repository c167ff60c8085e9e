"""A quantized export made of a float one: its base, its graphs and its adapters; no torch.

    base.onnx, swappable.onnx, …    the same graphs, reading integers and scales
    weights/base.safetensors        quantized, read from the export in blocks
    weights/<adapter>.safetensors   the tensors of a merged adapter, quantized as the base's are
    adapters/, stacks, hf/          copied

Nothing is merged again: what is quantized are the values that the export holds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError
from lora_export.core.files import copy_file, resolve_inside, storage_errors, write_synced
from lora_export.core.manifest import QUANTIZED_VERSION, Manifest, write_manifest
from lora_export.core.modes import BASE_GRAPH, BATCHED_GRAPH, SWAPPABLE_GRAPH
from lora_export.core.quantization import stored_name
from lora_export.core.quantization_record import QuantizationRecord
from lora_export.core.safetensors_file import read_header
from lora_export.core.version import VERSION
from lora_export.exports.create import in_blocks, quantized_use
from lora_export.exports.graph_files import placements_of
from lora_export.exports.stored_values import parameters_of
from lora_export.graph.adapters.batched_graph import stack_a, stack_of
from lora_export.graph.adapters.swappable_graph import input_a, optional_inputs
from lora_export.graph.quantize.opset import raise_opset
from lora_export.graph.quantize.quantized_graph import quantize_graph
from lora_export.graph.quantize.quantized_template import quantize_template, ranks_of
from lora_export.graph.quantize.schemes import class_heads
from lora_export.graph.spec import tasks
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.placement import place
from lora_export.graph.spec.template import GraphTemplate
from lora_export.ondevice.external_data import read_graph
from lora_export.weights.parameter_entries import entries_of
from lora_export.weights.stream import copied_entry, stored_entry, write_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import AdapterRecord, GraphRecord, ParameterUse
    from lora_export.core.parameters import Parameter
    from lora_export.core.progress import Progress
    from lora_export.core.tensors import Tensor
    from lora_export.exports.create import MeasureMoments
    from lora_export.graph.quantize.schemes import QuantizeChoice
    from lora_export.graph.spec.template import Placement
    from lora_export.weights.quantized_entries import Moments
    from lora_export.weights.stream import Entry

__all__ = ["QuantizedExport", "quantize_export"]

_COPIED: Final = ("hf/", "adapters/")
"""Folders whose files go as they are."""
_EMBEDDING: Final = "Embedding"


@dataclass(frozen=True)
class QuantizedExport:
    """The manifest of a quantized export, and the matrices that stayed as they were."""

    manifest: Manifest
    kept: Mapping[str, str]


def quantize_export(
    source: Path,
    manifest: Manifest,
    target: Path,
    choice: QuantizeChoice,
    progress: Progress,
    *,
    measure: MeasureMoments | None = None,
) -> QuantizedExport:
    """Write a quantized export of a float one into an empty folder.

    Args:
        source: The float export.
        manifest: Its manifest.
        target: An empty folder.
        choice: What is quantized, and how.
        progress: Told about bytes.
        measure: Measures what products are given in the float graph, for a method that needs it.

    Raises:
        UnsupportedError: It is quantized already, is of a graph of the user's, or nothing in it
            can be quantized.
        InputError: A value is not finite, or a file is damaged.
        StorageError: The disk refuses.
    """
    _require_float(source, manifest)
    before = {each.name: each for each in parameters_of(manifest)}
    found = quantize_template(
        _template(source, manifest, choice),
        choice,
        tokens=tasks.by_name(manifest.base.task).scores_tokens,
        required=_required(source, manifest, before),
    )
    after = {each.name: each for each in found.template.parameters}
    names = in_blocks(after.values())
    moments = measure(source, manifest, names) if measure is not None and names else None
    with storage_errors(str(target)):
        (target / "weights").mkdir()
    files, places = _write_weights(
        source, manifest, target,
        before=before, after=after, method=choice.method, moments=moments, progress=progress,
    )  # fmt: skip
    graphs = {}
    for name, graph in manifest.graphs.items():
        placements = {key: at for file in graph.weights for key, at in places[file].items()}
        made = {
            file: write_synced(
                target / file,
                _graph(read_graph(resolve_inside(source, file)), after, placements, choice),
            )
            for file in graph.graph_files
        }
        files |= made
        graphs[name] = _record_of(graph, made, found.template.opset)
    files |= _copy_others(source, manifest, target)
    record = QuantizationRecord(**{**asdict(choice), "keep": list(choice.keep)})
    quantized = manifest.model_copy(
        update={
            "format_version": QUANTIZED_VERSION,
            "tool": f"lora-export {VERSION}",
            "base": manifest.base.model_copy(update={"quantization": record}),
            "parameters": _parameters(manifest, after),
            "graphs": graphs,
            "adapters": {name: _unverified(each) for name, each in manifest.adapters.items()},
            "files": files,
        }
    )
    write_manifest(target, quantized)
    return QuantizedExport(quantized, found.kept)


def _write_weights(
    source: Path,
    manifest: Manifest,
    target: Path,
    *,
    before: Mapping[str, Parameter],
    after: Mapping[str, Parameter],
    method: str,
    moments: Moments | None,
    progress: Progress,
) -> tuple[dict[str, str], dict[str, dict[str, Placement]]]:
    """Write every weight file; return the hash of each, and the place of each tensor in it."""
    files: dict[str, str] = {}
    places: dict[str, dict[str, Placement]] = {}
    weights = sorted({file for each in manifest.graphs.values() for file in each.weights})
    read = {file: read_header(resolve_inside(source, file)) for file in weights}
    entries = {file: _entries(read[file][0], before, after, method, moments) for file in weights}
    progress.start(
        "quantizing the weights", sum(each.nbytes for rows in entries.values() for each in rows)
    )
    for file in weights:
        written = write_weights(
            target / file, entries[file], metadata=read[file][1], advance=progress.advance
        )
        files[file] = written.sha256
        places[file] = placements_of(file, entries[file], written)
    return files, places


def _copy_others(source: Path, manifest: Manifest, target: Path) -> dict[str, str]:
    """Copy what is neither a graph nor weights nor about them; return the hash of each file."""
    copied = {file: sha for file, sha in manifest.files.items() if file.startswith(_COPIED)}
    for file in copied:
        with storage_errors(str(target)):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
        copy_file(resolve_inside(source, file), target / file)
    return copied


def _require_float(source: Path, manifest: Manifest) -> None:
    if manifest.base.quantization is not None:
        msg = f"{str(source)!r} is quantized already, to {manifest.base.quantization.weights}"
        raise UnsupportedError(msg, hint="Quantize the float export that it was made of.")
    if manifest.base.graph is not None:
        msg = f"{str(source)!r} has a graph of your own, which is not rewritten"
        raise UnsupportedError(msg, hint="Export without --graph, or quantize that graph yourself.")


def _template(source: Path, manifest: Manifest, choice: QuantizeChoice) -> GraphTemplate:
    """Return the base graph as a template; of opset 21 where blocks need it."""
    record = manifest.base_graph
    graphs = [parse_onnx(read_graph(resolve_inside(source, file))) for file in record.graph_files]
    opset = record.opset
    if choice.needs_blocks:
        opset = max(raise_opset(graph) for graph in graphs)
    first, *further = (graph.SerializeToString(deterministic=True) for graph in graphs)
    return GraphTemplate(
        first,
        parameters_of(manifest),
        manifest.base.prefix,
        manifest.base.model_class,
        opset,
        encoder_bytes=further[0] if further else None,
        conversions=tuple(manifest.base.conversions),
    )


def _required(
    source: Path, manifest: Manifest, parameters: Mapping[str, Parameter]
) -> dict[str, str]:
    """Return the parameters that stay: heads of classes, and inputs and stacks of adapters."""
    labels = tasks.by_name(manifest.base.task).label_parameters
    required = class_heads(labels, parameters)
    own: set[str] = set()
    if swappable := manifest.graphs.get(SWAPPABLE_GRAPH):
        own |= set(optional_inputs(read_graph(resolve_inside(source, swappable.onnx))))
    if batched := manifest.graphs.get(BATCHED_GRAPH):
        graph = parse_onnx(read_graph(resolve_inside(source, batched.onnx))).graph
        own |= {each.name for each in graph.initializer}
    for name, parameter in parameters.items():
        looked_up = parameter.module_type == _EMBEDDING and {input_a(name), stack_a(name)} & own
        is_value = stack_of(name) in own or (SWAPPABLE_GRAPH in manifest.graphs and name in own)
        if looked_up or is_value:
            required[name] = "adapters bring their own"
    return required


def _entries(
    tensors: Mapping[str, Tensor],
    before: Mapping[str, Parameter],
    after: Mapping[str, Parameter],
    method: str,
    moments: Moments | None,
) -> list[Entry]:
    """Return what a weight file holds, with the parameters that are quantized now."""
    entries: list[Entry] = []
    for name, tensor in tensors.items():
        parameter = after.get(name)
        if parameter is None or parameter.quantized is None:
            entries.append(copied_entry(name, tensor))
            continue
        turned = parameter.transposed != before[name].transposed
        entries += entries_of(
            parameter,
            partial(stored_entry, tensor, transposed=turned),
            method=method,
            moments=moments,
        )
    return entries


def _graph(
    data: bytes,
    parameters: Mapping[str, Parameter],
    placements: Mapping[str, Placement],
    choice: QuantizeChoice,
) -> bytes:
    """Return a graph of the export that reads quantized weights, pointed at their places."""
    model = parse_onnx(data)
    if choice.needs_blocks:
        raise_opset(model)
    quantize_graph(model, list(parameters.values()), ranks_of(model))
    own = {stored_name(each.name) for each in model.graph.initializer}
    read = {name: at for name, at in placements.items() if name in own}
    return place(model.SerializeToString(deterministic=True), read)


def _record_of(graph: GraphRecord, made: Mapping[str, str], opset: int) -> GraphRecord:
    """Return the record of a quantized graph, which nobody has verified."""
    encoder = graph.encoder
    return graph.model_copy(
        update={
            "sha256": made[graph.onnx],
            "opset": opset,
            "verification": "unverified",
            "golden": None,
            "encoder": None
            if encoder is None
            else encoder.model_copy(update={"sha256": made[encoder.onnx]}),
        }
    )


def _unverified(adapter: AdapterRecord) -> AdapterRecord:
    told = {"verification": "unverified", "golden": None}
    return adapter.model_copy(
        update={
            field: own.model_copy(update=told)
            for field, own in (("pack", adapter.pack), ("row", adapter.row))
            if own is not None
        }
    )


def _parameters(
    manifest: Manifest, after: Mapping[str, Parameter]
) -> dict[str, list[ParameterUse]]:
    """Return the table of parameters, those of the base graph as they are stored now."""
    return {
        name: [
            quantized_use(use, after[use.initializer]) if use.graph == BASE_GRAPH else use
            for use in uses
        ]
        for name, uses in manifest.parameters.items()
    }
