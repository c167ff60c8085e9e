"""A new export directory: the base's weights in the graph's layout, its graph, its companions."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

from lora_export.core.base_record import TemplateRecord
from lora_export.core.files import storage_errors, write_synced
from lora_export.core.graph_forms import DEFAULT_FORM, GraphForm
from lora_export.core.manifest import (
    PLAIN_VERSION,
    QUANTIZED_VERSION,
    BaseRecord,
    GraphRecord,
    Manifest,
    ParameterUse,
    write_manifest,
)
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.parameters import CAST, QUANTIZE, TRANSPOSE
from lora_export.core.quantization import scales_name, zero_points_name
from lora_export.core.quantization_record import (
    QuantizationRecord,
    QuantizedRecord,
    TrainingBase,
)
from lora_export.core.reports.report_model import report_bytes
from lora_export.core.version import VERSION
from lora_export.exports.graph_files import write_graphs
from lora_export.exports.untied_export import tie_records
from lora_export.graph.spec.template import Placement
from lora_export.weights.companion_writer import labelled, write_companions
from lora_export.weights.parameter_entries import carried_entries, count_carried, entries_of
from lora_export.weights.stream import base_entry, copied_entry, write_weights, zero_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from lora_export.adapters.ties import TieGroup
    from lora_export.core.manifest import GraphSource
    from lora_export.core.parameters import Parameter
    from lora_export.core.progress import Progress
    from lora_export.core.reports.graph_report import GraphReport
    from lora_export.core.tensors import Tensor
    from lora_export.exports.plan import BasePlan
    from lora_export.graph.spec.signature import Choices
    from lora_export.graph.spec.template import GraphTemplate
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.quantized_entries import Moments
    from lora_export.weights.stream import Entry

    MeasureMoments = Callable[[Path, Manifest, Collection[str]], Moments]

__all__ = [
    "BASE_WEIGHTS",
    "create_export",
    "in_blocks",
    "quantized_use",
    "weights_metadata",
]

BASE_WEIGHTS: Final = "weights/base.safetensors"
_ROUNDED_WEIGHTS: Final = "weights/base.rounded.safetensors"
MISSING_WEIGHTS: Final = "weights/base.missing.safetensors"
GRAPH_REPORT: Final = "reports/graph.json"
_LAYOUT: Final = "lora-export/1"


def create_export(
    export_dir: Path,
    checkpoint: Checkpoint,
    template: GraphTemplate,
    plan: BasePlan,
    *,
    source: str,
    task: str,
    dtype: str,
    choices: Choices,
    labels: Sequence[str] | None,
    fingerprint: Callable[[], str],
    progress: Progress,
    graph_source: GraphSource | None = None,
    graph_report: GraphReport | None = None,
    ties: Sequence[TieGroup] = (),
    trained_on: TrainingBase | None = None,
    quantization: QuantizationRecord | None = None,
    form: GraphForm = DEFAULT_FORM,
    measure: MeasureMoments | None = None,
) -> Manifest:
    """Write the base's weights, graph, companions and manifest into the empty folder `export_dir`.

    Args:
        export_dir: An empty folder.
        checkpoint: The base.
        template: Its graph.
        plan: Where each parameter comes from.
        source: Where the base is, as the manifest records it.
        task: The task's name.
        dtype: The dtype of the export.
        choices: The interface of a decoder.
        labels: Names of the classes, in order, where they are known.
        fingerprint: Returns the base's fingerprint; asked for after the weights are written.
        progress: Told about bytes.
        graph_source: Where the user's own graph is, if the template was made from one.
        graph_report: How it was matched to the checkpoint.
        ties: The weights that the base ties and the graph holds apart.
        trained_on: The quantized base of the adapters, where `checkpoint` is the original of it.
        quantization: What is quantized, as the template's parameters have it.
        form: The form of the template's graph.
        measure: Measures what products are given in the graph, for a method that needs it.

    Raises:
        CheckpointError: A tensor ends too early.
        InputError: A value that `dtype` cannot hold.
        StorageError: The disk refuses.
    """
    with storage_errors(str(export_dir)):
        (export_dir / "weights").mkdir()
    method = _method(quantization)
    files, placements = _write_base_weights(export_dir, template, plan, progress, method)
    weights = sorted(files)
    graph = write_graphs(export_dir, BASE_GRAPH, template.graphs, placements)
    files |= graph.files
    files |= _write_companions(export_dir, checkpoint, labels)
    if graph_report is not None:
        files[GRAPH_REPORT] = _write_report(export_dir, graph_report)
    manifest = Manifest(
        format_version=PLAIN_VERSION
        if quantization is None and form == DEFAULT_FORM
        else QUANTIZED_VERSION,
        tool=f"lora-export {VERSION}",
        base=BaseRecord(
            source=source,
            model_type=str(checkpoint.config["model_type"]),
            model_class=template.model_class,
            task=task,
            dtype=dtype,
            fingerprint=fingerprint(),
            prefix=template.prefix,
            labels=list(labels) if labels else None,
            untied=_untied(plan),
            ties=tie_records(ties),
            cache=choices.cache,
            cache_length=choices.cache_length,
            logits=choices.logits,
            pooling=str(checkpoint.sentence) if checkpoint.sentence else None,
            graph=graph_source,
            template=_template_record(template),
            conversions=list(template.conversions),
            quantization=quantization,
            stored_quantization=checkpoint.stored_form,
            carried=count_carried(template.parameters, plan.sources) or None,
            trained_on=trained_on,
        ),
        parameters=_parameter_table(template.parameters, plan),
        graphs={
            BASE_GRAPH: GraphRecord(
                mode=Mode.BASE,
                onnx=graph.onnx.onnx,
                weights=weights,
                opset=template.opset,
                sha256=graph.onnx.sha256,
                missing=list(plan.missing),
                encoder=graph.encoder,
                form=None if form == DEFAULT_FORM else form,
            )
        },
        adapters={},
        files=files,
    )
    if measure is not None:
        manifest = _round_again(
            export_dir, manifest, template, plan, measure=measure, progress=progress
        )
    write_manifest(export_dir, manifest)
    return manifest


def _round_again(
    export_dir: Path,
    manifest: Manifest,
    template: GraphTemplate,
    plan: BasePlan,
    *,
    measure: MeasureMoments,
    progress: Progress,
) -> Manifest:
    """Write the base's weights again, rounded for what the graph's products are given.

    The graph that tells has weights rounded to nearest; it stays, for nothing moves in the file.
    """
    names = in_blocks(template.parameters)
    if not names:
        return manifest
    moments = measure(export_dir, manifest, names)
    present = _present(template, plan, _method(manifest.base.quantization), moments)
    progress.start("rounding the base weights again", sum(entry.nbytes for entry in present))
    written = write_weights(
        export_dir / _ROUNDED_WEIGHTS,
        present,
        metadata=weights_metadata("base"),
        advance=progress.advance,
    )
    with storage_errors(str(export_dir)):
        (export_dir / _ROUNDED_WEIGHTS).replace(export_dir / BASE_WEIGHTS)
    files = {**manifest.files, BASE_WEIGHTS: written.sha256}
    return manifest.model_copy(update={"files": files})


def _write_report(export_dir: Path, report: GraphReport) -> str:
    """Write ``reports/graph.json``; return its SHA-256."""
    with storage_errors(str(export_dir)):
        (export_dir / "reports").mkdir()
    return write_synced(export_dir / GRAPH_REPORT, report_bytes(report))


def _untied(plan: BasePlan) -> list[str]:
    """Return the parameters that come from one tensor of the checkpoint."""
    uses = Counter(id(tensor) for tensor in plan.sources.values())
    return sorted(name for name, tensor in plan.sources.items() if uses[id(tensor)] > 1)


def _method(quantization: QuantizationRecord | None) -> str:
    return quantization.method if quantization is not None else ""


def in_blocks(parameters: Iterable[Parameter]) -> set[str]:
    """Return the parameters that are quantized in blocks: those of products."""
    return {each.name for each in parameters if each.quantized and each.quantized.block_size}


def weights_metadata(name: str) -> dict[str, str]:
    """Return the ``__metadata__`` of a weight file."""
    return {"format": _LAYOUT, "name": name}


def _template_record(template: GraphTemplate) -> TemplateRecord | None:
    """Return what the manifest says of a graph that was made from a shipped template."""
    return TemplateRecord(**asdict(template.origin)) if template.origin is not None else None


def _write_base_weights(
    export_dir: Path, template: GraphTemplate, plan: BasePlan, progress: Progress, method: str
) -> tuple[dict[str, str], dict[str, Placement]]:
    """Write the base's weights; return each file's hash and each parameter's place.

    What only adapters have goes into a file of its own, so that the base's file does not depend on
    how wide the first adapter's head is.
    """
    present = _present(template, plan, method)
    missing = [
        entry
        for parameter in template.parameters
        if parameter.name not in plan.sources
        for entry in entries_of(parameter, zero_entry, method=method)
    ]
    progress.start("writing the base weights", sum(entry.nbytes for entry in present))
    files: dict[str, str] = {}
    placements: dict[str, Placement] = {}
    for file, entries in ((BASE_WEIGHTS, present), (MISSING_WEIGHTS, missing)):
        if not entries:
            continue
        name = file.removeprefix("weights/").removesuffix(".safetensors")
        written = write_weights(
            export_dir / file, entries, metadata=weights_metadata(name), advance=progress.advance
        )
        files[file] = written.sha256
        for parameter, (offset, length) in written.offsets.items():
            placements[parameter] = Placement(file, offset, length)
    return files, placements


def _present(
    template: GraphTemplate, plan: BasePlan, method: str, moments: Moments | None = None
) -> list[Entry]:
    """Return what the base's file holds."""
    present = [
        entry
        for parameter in template.parameters
        if (source := plan.sources.get(parameter.name)) is not None
        for entry in carried_entries(parameter, source)
        or entries_of(parameter, partial(_base_value, source), method=method, moments=moments)
    ]
    return [*present, *(copied_entry(name, tensor) for name, tensor in plan.kept.items())]


def _base_value(source: Tensor, parameter: Parameter) -> Entry:
    return base_entry(parameter, source)


def _parameter_table(
    parameters: Sequence[Parameter], plan: BasePlan
) -> dict[str, list[ParameterUse]]:
    table: dict[str, list[ParameterUse]] = {}
    for parameter in parameters:
        source = plan.sources.get(parameter.name)
        is_cast = source is not None and source.dtype.name != parameter.dtype
        use = ParameterUse(
            graph=BASE_GRAPH,
            initializer=parameter.name,
            transform=[CAST] if is_cast else [],
            dtype=parameter.dtype,
            shape=list(parameter.stored_shape),
            module=parameter.module_type,
            aliases=list(parameter.aliases),
        )
        use = quantized_use(use, parameter)
        table.setdefault(source.name if source else parameter.name, []).append(use)
    return table


def quantized_use(use: ParameterUse, parameter: Parameter) -> ParameterUse:
    """Return the record of a parameter with the layout and the scheme that it is stored with.

    Args:
        use: Its record; what it says of a cast stays.
        parameter: The parameter as it is stored.
    """
    steps = {
        TRANSPOSE: parameter.transposed,
        CAST: CAST in use.transform or parameter.quantized is not None,
        QUANTIZE: parameter.quantized is not None,
    }
    return use.model_copy(
        update={
            "transform": [step for step, taken in steps.items() if taken],
            "shape": list(parameter.stored_shape),
            "quantized": _quantized_record(parameter),
        }
    )


def _quantized_record(parameter: Parameter) -> QuantizedRecord | None:
    quantized = parameter.quantized
    if quantized is None:
        return None
    return QuantizedRecord(
        scheme=quantized.scheme,
        bits=quantized.bits,
        block_size=quantized.block_size,
        axis=quantized.axis,
        scale=scales_name(parameter.name),
        zero_point=zero_points_name(parameter.name) if quantized.zero_points else None,
    )


def _write_companions(
    export_dir: Path, checkpoint: Checkpoint, labels: Sequence[str] | None
) -> dict[str, str]:
    """Copy the tokenizer and config into ``hf/``, the config with the labels of the export."""
    with storage_errors(str(export_dir / "hf")):
        (export_dir / "hf").mkdir()
    config = labelled(checkpoint.config, labels)
    files = write_companions(export_dir / "hf", checkpoint, config)
    return {f"hf/{name}": digest for name, digest in files.items()}
