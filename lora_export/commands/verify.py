"""``verify``: the verification of an existing export, repeated."""

from __future__ import annotations

from dataclasses import replace as with_values
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.commands.adapter_notes import base_of_export, notes_on_base
from lora_export.commands.approximated import approximated
from lora_export.commands.arguments import as_path, as_specs
from lora_export.commands.export_base import matching_checkpoint
from lora_export.commands.loss_limits import loss_gates, require_limits
from lora_export.commands.outcome import Outcome, Reports
from lora_export.commands.resolved_adapters import find_adapters
from lora_export.core.errors import AdapterError, LoraExportError, StorageError, UsageError
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH
from lora_export.core.progress import Progress, Silent
from lora_export.exports.integrity_checks import require_intact
from lora_export.exports.padding import as_exported
from lora_export.exports.plan import for_task
from lora_export.graph.spec import tasks
from lora_export.report.refresh_report import refresh_report
from lora_export.runtime.ort import require_onnxruntime
from lora_export.runtime.reference import require_reference
from lora_export.verification.datasets.dataset import require_metric
from lora_export.verification.export import Evidence, compare_export, losses_of, report_on
from lora_export.verification.record import judged_manifest, record_parity
from lora_export.weights.pooling_source import pooling_of_export

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.manifest import Manifest
    from lora_export.verification.parity import GraphParity
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.named_base import GivenBase


__all__ = ["verify"]


def verify(
    export: str | Path,
    *,
    base: str | Path | None = None,
    adapters: Sequence[AdapterSpec | str | Path] = (),
    only: Sequence[str] = (),
    dataset: str | Path | None = None,
    metric: str | None = None,
    max_new_tokens: int = 64,
    disagreements: str | Path | None = None,
    seed: int = 0,
    allow_no_effect: bool = False,
    min_gain: float | None = None,
    max_loss: float | None = None,
    max_metric_drop: float | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Verify an existing export: against torch where the base is given, else its golden outputs.

    The verdicts are recorded in the export; where it cannot be written, a note says so.

    Args:
        export: The export directory.
        base: The base checkpoint, a folder or an id of the hub.
        adapters: Where adapters are now that are no longer at the place that the manifest records:
            specs, ``"NAME=PATH"`` or paths.
        only: What is verified, ``base`` or names of adapters; by default all. What is recorded of
            the others stays.
        dataset: A JSONL file of examples; see `lora_export.verification.datasets`.
        metric: How they are scored; by default as the task usually is.
        max_new_tokens: The most tokens of a text that is written for them.
        disagreements: Where every example on which graph and reference differ is written.
        seed: Seeds the inputs.
        allow_no_effect: Whether an adapter may change nothing.
        min_gain: The smallest share of an adapter's effect that a quantized graph may keep.
        max_loss: The largest relative L2 error of a quantized graph's outputs.
        max_metric_drop: The most that its score on the data set may lose.
        strict: Whether an adapter that names another base is an error.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error.
    """
    export_dir, specs = Path(export), as_specs(adapters)
    dataset, disagreements = as_path(dataset), as_path(disagreements)
    _require_sense(base, specs, dataset, metric, disagreements)
    manifest = read_manifest(export_dir)
    require_limits(
        min_gain, max_loss, max_metric_drop,
        is_quantized=manifest.base.quantization is not None,
        has_base=base is not None, has_dataset=dataset is not None,
    )  # fmt: skip
    chosen = _chosen(export_dir, manifest, only)
    if dataset is not None and not chosen - {BASE_GRAPH}:
        msg = "--dataset needs an adapter, and --only names the base alone"
        raise UsageError(msg, hint="Name one: --only ADAPTER.")
    require_intact(export_dir, manifest)
    require_onnxruntime()
    tell = progress or Silent()
    if dataset is not None:
        require_metric(manifest.base.task, metric)
    checkpoint = matching_checkpoint(manifest, base)
    read: Mapping[str, Adapter] = {}
    if checkpoint is not None:
        require_reference()
        task = tasks.by_name(manifest.base.task)
        checkpoint = as_exported(checkpoint, export_dir)
        checkpoint = for_task(checkpoint, task, pooling_of_export(export_dir, checkpoint.folder))
        read = find_adapters(export_dir, manifest, specs, checkpoint.config, only=chosen)
        read = _approximated(read, manifest, checkpoint, tell)
        read = _noted(read, base_of_export(export_dir, manifest, checkpoint), tell, strict=strict)
    evidence = Evidence(
        checkpoint,
        read,
        dataset=dataset,
        metric=metric,
        max_new_tokens=max_new_tokens,
        disagreements=disagreements,
        seed=seed,
        allow_no_effect=allow_no_effect,
        only=chosen,
        gates=loss_gates(min_gain, max_loss, max_metric_drop),
    )
    shared = chosen - {BASE_GRAPH} or not only
    graphs = [
        name
        for name, graph in manifest.graphs.items()
        if name in chosen or (shared and graph.is_shared)
    ]
    before, found = compare_export(export_dir, graphs, evidence, tell)
    notes = [
        note
        for name, record in manifest.adapters.items()
        if name in chosen
        for note in read.get(name, record).notes
    ]
    judged, unwritten = _recorded(export_dir, before, found, tell)
    reports = Reports(parity=report_on(found), quantization=losses_of(manifest, found))
    return Outcome(export_dir, judged, reports, (*notes, *unwritten))


def _approximated(
    read: Mapping[str, Adapter], manifest: Manifest, checkpoint: Checkpoint, tell: Progress
) -> dict[str, Adapter]:
    """Return adapters, those that the export holds approximately as it holds them."""
    records = {name: manifest.adapters[name].approximation for name in read}
    return {
        name: adapter if record is None else approximated(adapter, checkpoint, record.rank, tell)
        for (name, adapter), record in zip(read.items(), records.values(), strict=True)
    }


def _recorded(
    export_dir: Path, before: Manifest, found: Mapping[str, GraphParity], tell: Progress
) -> tuple[Manifest, list[str]]:
    """Record verdicts in the export and its report; return the manifest, and what was not written.

    An export that cannot be written, on a read-only disk for instance, has its verdict all the
    same.
    """
    judged, notes = judged_manifest(export_dir, before, found), []
    try:
        judged = record_parity(export_dir, before, found)
    except StorageError as error:
        notes.append(f"the verdict is not written down in the export: {error.message}")
    else:
        try:
            judged = refresh_report(export_dir)
        except LoraExportError as error:
            notes.append(f"the report could not be brought up to date: {error.message}")
    for note in notes:
        tell.note(note)
    return judged, notes


def _require_sense(
    base: str | Path | None,
    specs: Sequence[AdapterSpec],
    dataset: Path | None,
    metric: str | None,
    disagreements: Path | None,
) -> None:
    """Raise where an argument says something about another one that is not given."""
    if base is None and (specs or dataset is not None):
        what = "--adapter" if specs else "--dataset"
        msg = f"{what} needs --base"
        raise UsageError(msg, hint="Add --base BASE.")
    if dataset is None and (metric is not None or disagreements is not None):
        what = "--metric" if metric is not None else "--disagreements"
        msg = f"{what} needs --dataset"
        raise UsageError(msg, hint="Add --dataset FILE.jsonl.")
    if disagreements is not None and disagreements.is_dir():
        msg = f"--disagreements {str(disagreements)!r} is a folder"
        raise UsageError(msg, hint="Name a file: --disagreements FILE.jsonl")


def _noted(
    adapters: Mapping[str, Adapter], base: GivenBase, tell: Progress, *, strict: bool
) -> dict[str, Adapter]:
    """Return the adapters, each with a note where it names another base than the export's."""
    return {
        name: with_values(each, notes=notes_on_base([each], base, tell, strict=strict))
        for name, each in adapters.items()
    }


def _chosen(export_dir: Path, manifest: Manifest, only: Sequence[str]) -> frozenset[str]:
    """Return the names of what is verified.

    Raises:
        AdapterError: The export holds nothing of a name.
    """
    known = (BASE_GRAPH, *manifest.adapters)
    if unknown := [name for name in only if name not in known]:
        msg = f"the export {str(export_dir)!r} has no adapter {unknown[0]!r}"
        raise AdapterError(msg, hint=f"--only takes: {', '.join(known)}.")
    return frozenset(only or known)
