"""Existing exports: adapters added and removed, the verification repeated.

Adding and removing import no torch; the base's weights and graph stay as they are.
"""

from __future__ import annotations

from dataclasses import replace as with_values
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.adapter_notes import base_of_export, notes_of, notes_on_base, with_notes
from lora_export.base.errors import AdapterError, UsageError
from lora_export.base.manifest import read_manifest
from lora_export.base.progress import Progress, Silent
from lora_export.exports.belonging import require_base, require_task
from lora_export.exports.extend import parameters_of, remove_adapter
from lora_export.exports.intact import require_intact, require_usable
from lora_export.exports.padding import as_exported
from lora_export.exports.plan import for_task
from lora_export.exports.stacks import change_rows, is_batched
from lora_export.exports.untied import recorded_ties
from lora_export.graph import tasks
from lora_export.parts import notes_on_resolved, read_specs
from lora_export.report.write import refresh_report
from lora_export.runtime.ort import require_onnxruntime
from lora_export.runtime.reference import require_reference
from lora_export.steps import (
    Outcome,
    add_all,
    config_of,
    find_adapters,
    matching_checkpoint,
    prepare,
)
from lora_export.verify.dataset import require_metric
from lora_export.verify.export import Evidence, verify_export
from lora_export.verify.record import prune_reports
from lora_export.weights.pooling_source import (
    pooling_beside,
    pooling_of_export,
    require_pooling,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.base.manifest import Manifest
    from lora_export.recipe import AdapterSpec, CombineSpec
    from lora_export.weights.named_base import GivenBase

__all__ = ["add", "remove", "verify"]


def add(
    output: Path,
    specs: Sequence[AdapterSpec],
    *,
    base: str | Path | None = None,
    combine: CombineSpec | None = None,
    replace: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Add adapters to an existing export, without torch and without tracing.

    Args:
        output: The export directory.
        specs: The adapters.
        base: The base checkpoint, a folder or an id of the hub; needed for exactness only where
            the export was cast.
        combine: How the adapters become one; None adds each.
        replace: Whether adapters of the same names may be replaced.
        strict: Whether an adapter that names another base is an error.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; an adapter is added whole or not at all.
    """
    manifest = read_manifest(output)
    require_usable(output, manifest)
    config = config_of(output, base)
    given = read_specs(specs, Path(), combine, base_config=config)
    pooling = pooling_beside(output / "hf") if manifest.base.pooling is not None else None
    for one in given:
        require_task(manifest, one.adapter)
        if pooling is not None:
            require_pooling(pooling, one.originals)
    checkpoint = matching_checkpoint(manifest, base)
    tell = progress or Silent()
    given = with_notes(
        given,
        base_of_export(output, manifest, checkpoint),
        tell,
        model_type=manifest.base.model_type,
        strict=strict,
    )
    ready = prepare(
        given,
        parameters_of(manifest),
        prefix=manifest.base.prefix,
        conversions=manifest.base.conversions,
        config=config,
        task=tasks.by_name(manifest.base.task),
        ties=recorded_ties(manifest),
    )
    for each in ready:
        require_base(output, manifest, each.resolved, each.given.originals, checkpoint)
    notes = (
        *notes_of(given),
        *notes_on_resolved([each.resolved for each in ready], tell),
    )
    _, reports = add_all(
        output,
        ready,
        output=output,
        checkpoint=checkpoint,
        replace=replace,
        progress=progress or Silent(),
    )
    names = {each.resolved.adapter.name for each in ready}
    if replaced := names & set(manifest.adapters):
        prune_reports(output, replaced, measured=reports.get("fidelity", {}).get("graphs", {}))
    return Outcome(output, refresh_report(output), reports, notes)


def remove(output: Path, name: str) -> Outcome:
    """Remove an adapter from an export."""
    if is_batched(read_manifest(output)):
        change_rows(output, gone=name)
    else:
        remove_adapter(output, name)
    prune_reports(output)
    return Outcome(output, refresh_report(output))


def verify(
    output: Path,
    *,
    base: str | Path | None = None,
    specs: Sequence[AdapterSpec] = (),
    only: Sequence[str] = (),
    dataset: Path | None = None,
    metric: str | None = None,
    max_new_tokens: int = 64,
    disagreements: Path | None = None,
    seed: int = 0,
    allow_no_effect: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Verify an existing export: against torch where the base is given, else its golden outputs.

    Args:
        output: The export directory.
        base: The base checkpoint, a folder or an id of the hub.
        specs: The adapters, where they are no longer at the place that the manifest records.
        only: What is verified, ``base`` or names of adapters; by default all. What is recorded of
            the others stays.
        dataset: A JSONL file of examples; see `lora_export.verify.kinds`.
        metric: How they are scored; by default as the task usually is.
        max_new_tokens: The most tokens of a text that is written for them.
        disagreements: Where every example on which graph and reference differ is written.
        seed: Seeds the inputs.
        allow_no_effect: Whether an adapter may change nothing.
        strict: Whether an adapter that names another base is an error.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error.
    """
    if base is None and (specs or dataset is not None):
        what = "--adapter" if specs else "--dataset"
        msg = f"{what} says what to compare with torch, and the base is not given"
        raise UsageError(msg, hint="Add --base BASE.")
    if dataset is None and (metric is not None or disagreements is not None):
        what = "--metric" if metric is not None else "--disagreements"
        msg = f"{what} is about a data set, and none is given"
        raise UsageError(msg, hint="Add --dataset FILE.jsonl.")
    if disagreements is not None and disagreements.is_dir():
        msg = f"--disagreements {str(disagreements)!r} is a folder"
        raise UsageError(msg, hint="Name a file: --disagreements FILE.jsonl")
    manifest = read_manifest(output)
    chosen = _chosen(output, manifest, only)
    if dataset is not None and not chosen - {"base"}:
        msg = "--dataset scores adapters, and only the base is to be verified"
        raise UsageError(msg, hint="Name one: --only ADAPTER.")
    require_intact(output, manifest)
    require_onnxruntime()
    tell = progress or Silent()
    if dataset is not None:
        require_metric(manifest.base.task, metric)
    checkpoint = matching_checkpoint(manifest, base)
    adapters: Mapping[str, Adapter] = {}
    if checkpoint is not None:
        require_reference()
        task = tasks.by_name(manifest.base.task)
        checkpoint = as_exported(checkpoint, output)
        checkpoint = for_task(checkpoint, task, pooling_of_export(output, checkpoint.folder))
        adapters = find_adapters(output, manifest, specs, checkpoint.config, only=chosen)
        adapters = _noted(
            adapters, base_of_export(output, manifest, checkpoint), tell, strict=strict
        )
    evidence = Evidence(
        checkpoint,
        adapters,
        dataset=dataset,
        metric=metric,
        max_new_tokens=max_new_tokens,
        disagreements=disagreements,
        seed=seed,
        allow_no_effect=allow_no_effect,
        only=chosen,
    )
    shared = chosen - {"base"} or not only
    graphs = [
        name
        for name, graph in manifest.graphs.items()
        if name in chosen or (shared and graph.is_shared)
    ]
    _, report = verify_export(output, graphs, evidence, tell)
    notes = [
        note
        for name, record in manifest.adapters.items()
        if name in chosen
        for note in adapters.get(name, record).notes
    ]
    return Outcome(output, refresh_report(output), {"parity": report}, tuple(notes))


def _noted(
    adapters: Mapping[str, Adapter], base: GivenBase, tell: Progress, *, strict: bool
) -> dict[str, Adapter]:
    """Return the adapters, each with a note where it names another base than the export's."""
    return {
        name: with_values(each, notes=notes_on_base([each], base, tell, strict=strict))
        for name, each in adapters.items()
    }


def _chosen(output: Path, manifest: Manifest, only: Sequence[str]) -> frozenset[str]:
    """Return the names of what is verified.

    Raises:
        AdapterError: The export holds nothing of a name.
    """
    known = ("base", *manifest.adapters)
    if unknown := [name for name in only if name not in known]:
        msg = f"the export {str(output)!r} holds no adapter {unknown[0]!r}"
        raise AdapterError(msg, hint=f"--only takes: {', '.join(known)}.")
    return frozenset(only or known)
