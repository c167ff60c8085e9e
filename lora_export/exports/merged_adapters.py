"""Adding an adapter to an export, and removing one: no torch, no tracing, the base untouched.

What is written is one weight file with the tensors that changed and one graph that points at it
for those, and at the base's file for all others. The work happens in a private folder; under the
directory's lock the manifest names the files and they move into place (`change_export`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.adapter_names import is_adapter_name
from lora_export.core.changes import change_export
from lora_export.core.engine_names import engines_of
from lora_export.core.errors import AdapterError
from lora_export.core.files import resolve_inside, staging_folder, storage_errors
from lora_export.core.manifest import (
    AdapterRecord,
    ApproximationRecord,
    GraphRecord,
    Manifest,
    edit_manifest,
)
from lora_export.core.modes import Mode
from lora_export.exports.adapter_companions import NO_COMPANIONS, folder_of, stage_companions
from lora_export.exports.create import BASE_WEIGHTS, in_blocks, weights_metadata
from lora_export.exports.graph_files import (
    placements_of,
    possible_files,
    read_graphs,
    write_graphs,
)
from lora_export.exports.merged_entries import ORIGIN_CHECKPOINT, ORIGIN_EXPORT, merged_entries
from lora_export.exports.stored_values import parameters_of, stored_values
from lora_export.graph.spec import tasks
from lora_export.ondevice.trt.build_record import FOLDER
from lora_export.weights.fidelity import FidelityMeter, fidelity_rows
from lora_export.weights.stream import write_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.core.combined_record import CombinedRecord
    from lora_export.core.progress import Progress
    from lora_export.core.reports.fidelity_report import FidelityRow
    from lora_export.exports.adapter_companions import AdapterCompanions
    from lora_export.exports.create import MeasureMoments
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.quantized_entries import Moments

__all__ = [
    "AddedAdapter",
    "adapter_record",
    "add_adapter",
    "delete_orphans",
    "forget_adapter",
    "orphaned_files",
    "parameters_of",
    "refuse_taken",
    "remove_adapter",
]

_NARROW: Final = frozenset({"float16", "bfloat16"})


@dataclass(frozen=True)
class AddedAdapter:
    """The result of adding an adapter.

    Attributes:
        manifest: The manifest that names it.
        fidelity: What storing float16 or bfloat16 kept of it; None where no
            low-rank update is stored in these.
    """

    manifest: Manifest
    fidelity: FidelityRow | None


def add_adapter(
    export_dir: Path,
    resolved: Resolved,
    *,
    source: str,
    checkpoint: Checkpoint | None,
    labels: Sequence[str] | None,
    replace: bool,
    progress: Progress,
    combined: CombinedRecord | None = None,
    companions: AdapterCompanions = NO_COMPANIONS,
    measure: MeasureMoments | None = None,
) -> AddedAdapter:
    """Merge an adapter into an export; return the manifest that names it, and what was kept.

    A parameter that the export holds in the checkpoint's dtype is merged from the export, which is
    then exact; one that was cast is merged from `checkpoint` where it is given, else from the
    export, and the manifest says so (``merged_from``).

    Args:
        export_dir: The export directory.
        resolved: The adapter, resolved against the export's parameters.
        source: Where the adapter is, as the manifest records it.
        checkpoint: The base, where it is at hand.
        labels: Names of the head's classes.
        replace: Whether an adapter of the same name may be replaced.
        progress: Told about bytes.
        combined: What the adapter was made of, where it was.
        companions: What comes with it besides its tensors.
        measure: Measures what products are given in the base's graph, for a method that needs it.

    Raises:
        AdapterError: The name is taken, or a tensor of the adapter is damaged.
        StorageError: The disk refuses; the export is as it was.
    """
    name = resolved.adapter.name
    weights_file = f"weights/{name}.safetensors"
    with edit_manifest(export_dir) as manifest:
        refuse_taken(manifest, name, replace=replace)
    meters, moments = _meters(resolved), _moments(export_dir, manifest, resolved, measure)
    entries, origin = merged_entries(
        manifest, resolved, stored_values(export_dir, manifest), checkpoint, meters, moments=moments
    )
    progress.start(f"merging adapter {name}", sum(entry.nbytes for entry in entries))
    with staging_folder(export_dir, "add") as staging:
        with storage_errors(str(staging)):
            (staging / "weights").mkdir()
        written = write_weights(
            staging / weights_file,
            entries,
            metadata=weights_metadata(name),
            advance=progress.advance,
        )
        placements = placements_of(weights_file, entries, written)
        graph = write_graphs(
            staging,
            name,
            read_graphs(export_dir, manifest.base_graph),
            placements,
            output_width=_output_width(manifest, resolved),
        )
        record = adapter_record(
            manifest, resolved, source=source, origin=origin, labels=labels,
            combined=combined, companions=companions,
        )  # fmt: skip
        own = stage_companions(staging, name, companions.contents)
        graph_record = GraphRecord(
            mode=Mode.MERGED,
            onnx=graph.onnx.onnx,
            weights=[BASE_WEIGHTS, weights_file],
            opset=manifest.base_graph.opset,
            sha256=graph.onnx.sha256,
            encoder=graph.encoder,
            form=manifest.base_graph.form,
        )
        with edit_manifest(export_dir) as current:
            refuse_taken(current, name, replace=replace)
            others = forget_adapter(current, name)
            updated = others.model_copy(
                update={
                    "graphs": {**others.graphs, name: graph_record},
                    "adapters": {**others.adapters, name: record},
                    "files": {
                        **others.files,
                        **graph.files,
                        weights_file: written.sha256,
                        **own,
                    },
                }
            )
            change_export(
                export_dir, staging, current, updated, orphaned_files(export_dir, updated, name)
            )
    parts = {key: (dtype, meter.result()) for key, (dtype, meter) in meters.items()}
    return AddedAdapter(updated, fidelity_rows(parts) if parts else None)


def _moments(
    export_dir: Path, manifest: Manifest, resolved: Resolved, measure: MeasureMoments | None
) -> Moments | None:
    """Return what measures the inputs of the products that an adapter changes."""
    changed = in_blocks(update.parameter for update in resolved.updates)
    return measure(export_dir, manifest, changed) if measure is not None and changed else None


def remove_adapter(export_dir: Path, name: str) -> Manifest:
    """Take an adapter out of an export: the manifest forgets it, and its files go.

    Raises:
        AdapterError: The export has no adapter of this name.
    """
    with edit_manifest(export_dir) as manifest:
        if name not in manifest.adapters:
            if is_adapter_name(name) and delete_orphans(export_dir, manifest, name):
                return manifest  # a removal that was cut short is finished
            msg = f"the export {str(export_dir)!r} has no adapter {name!r}"
            raise AdapterError(msg, hint=f"It has: {_listed(manifest.adapters)}.")
        updated = forget_adapter(manifest, name)
        with staging_folder(export_dir, "remove") as staging:
            change_export(
                export_dir, staging, manifest, updated, orphaned_files(export_dir, updated, name)
            )
    return updated


def _files_of(name: str) -> tuple[str, ...]:
    """Return the files that an adapter may have in an export."""
    return (
        *possible_files(name),
        f"weights/{name}.safetensors",
        f"golden/{name}.npz",
        f"adapters/{name}.safetensors",
        f"adapters/{name}.onnx_adapter",
    )


def delete_orphans(export_dir: Path, manifest: Manifest, name: str) -> bool:
    """Remove the adapter's files that the manifest does not name; return whether there were any."""
    found = orphaned_files(export_dir, manifest, name)
    with storage_errors(str(export_dir)):
        for file in found:
            resolve_inside(export_dir, file).unlink(missing_ok=True)
    return bool(found)


def orphaned_files(export_dir: Path, manifest: Manifest, name: str) -> set[str]:
    """Return the adapter's files that are there and that the manifest does not name."""
    engines = {each.relative_to(export_dir).as_posix() for each in (export_dir / FOLDER).glob("*")}
    beside = resolve_inside(export_dir, folder_of(name)).rglob("*")
    own = {each.relative_to(export_dir).as_posix() for each in beside if each.is_file()}
    unnamed = ({*_files_of(name)} | engines_of(name, engines) | own) - set(manifest.files)
    return {file for file in unnamed if resolve_inside(export_dir, file).exists()}


def forget_adapter(manifest: Manifest, name: str) -> Manifest:
    """Return the manifest without an adapter, its graph and its files."""
    gone = {*_files_of(name)} | engines_of(name, manifest.files)
    record = manifest.adapters.get(name)
    if record is not None and record.companions is not None:
        gone |= {f"{folder_of(name)}/{file}" for file in record.companions.files}
    return manifest.model_copy(
        update={
            "graphs": {key: value for key, value in manifest.graphs.items() if key != name},
            "adapters": {key: value for key, value in manifest.adapters.items() if key != name},
            "files": {key: value for key, value in manifest.files.items() if key not in gone},
        }
    )


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"


def refuse_taken(manifest: Manifest, name: str, *, replace: bool) -> None:
    """Raise `AdapterError` where the export holds an adapter of this name that is to stay."""
    if name in manifest.adapters and not replace:
        msg = f"the export already holds an adapter {name!r}"
        raise AdapterError(msg, hint="Choose another name, or pass --replace.")


def _meters(resolved: Resolved) -> dict[str, tuple[str, FidelityMeter]]:
    """Return a meter for each low-rank update that is stored in halves, with its dtype."""
    return {
        update.parameter.name: (
            update.parameter.dtype,
            FidelityMeter(update.parameter, update.low_rank),
        )
        for update in resolved.updates
        if (update.low_rank is not None or update.computed is not None)
        and update.parameter.dtype in _NARROW
        and update.parameter.quantized is None
    }


def _output_width(manifest: Manifest, resolved: Resolved) -> int | None:
    """Return the number of labels or tokens, where the adapter brings it."""
    task = tasks.by_name(manifest.base.task)
    if resolved.vocabulary is not None and task.scores_tokens:
        return resolved.vocabulary.after
    for update in resolved.updates:
        if update.saved is not None and update.parameter.name in task.label_parameters:
            return update.saved.tensor.shape[0]
    return None


def adapter_record(
    manifest: Manifest,
    resolved: Resolved,
    *,
    source: str,
    origin: str,
    labels: Sequence[str] | None,
    combined: CombinedRecord | None,
    companions: AdapterCompanions = NO_COMPANIONS,
) -> AdapterRecord:
    """Return the manifest's record of an adapter; `origin` says whose values it was merged with."""
    adapter = resolved.adapter
    labels = companions.labels or labels
    missing = set(manifest.base_graph.missing)
    return AdapterRecord(
        source=source,
        format=adapter.format,
        rank=max(adapter.max_rank, resolved.max_rank),
        scale=adapter.factor if adapter.factor != 1 else None,
        alpha=adapter.alpha,
        enable_lora=None if adapter.enable_lora is None else list(adapter.enable_lora),
        combined=combined,
        merged_from=ORIGIN_EXPORT if origin == ORIGIN_EXPORT else ORIGIN_CHECKPOINT,
        tensors_total=adapter.tensor_count,
        tensors_applied=resolved.applied_count,
        dropped=list(resolved.dropped),
        missing_in_base=sorted(
            u.parameter.name for u in resolved.updates if u.saved and u.parameter.name in missing
        ),
        labels=list(labels) if labels else None,
        vocab_size=resolved.vocabulary.after if resolved.vocabulary else None,
        sha256=adapter.sha256,
        companions=companions.record,
        notes=[*adapter.notes, *companions.notes],
        approximation=_approximation(adapter),
    )


def _approximation(adapter: Adapter) -> ApproximationRecord | None:
    found = adapter.approximation
    if found is None:
        return None
    return ApproximationRecord(method=found.method, rank=found.rank, losses=dict(found.losses))
