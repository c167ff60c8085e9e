"""``add``: adapters added to an existing export, without torch and without tracing.

The base's weights and graph stay as they are. A build adds its adapters by the same function,
`add_adapters`, so that the results are equal bit for bit.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace as with_values
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.adapters.delta import require_finite_tensors
from lora_export.commands.adapter_inputs import notes_on_resolved, read_specs, recorded_source
from lora_export.commands.adapter_notes import base_of_export, notes_of, with_notes
from lora_export.commands.after_change import ReportUpdates
from lora_export.commands.approximated import as_rank_applied
from lora_export.commands.arguments import as_specs
from lora_export.commands.export_base import config_of, matching_checkpoint
from lora_export.commands.measured_inputs import measure_of
from lora_export.commands.outcome import Outcome, Reports
from lora_export.commands.resolved_adapters import resolve_adapters
from lora_export.core.errors import LoraExportError
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import SHARED_MODES
from lora_export.core.progress import Progress, Silent
from lora_export.exports.adapter_companions import AdapterCompanions, companions_for
from lora_export.exports.change_adapters import AddOptions, store_adapters
from lora_export.exports.compatibility import require_base, require_task
from lora_export.exports.integrity_checks import require_usable
from lora_export.exports.new_adapter import NewAdapter
from lora_export.exports.plan import require_complete
from lora_export.exports.stored_adapters import mode_of
from lora_export.exports.stored_values import parameters_of
from lora_export.exports.untied_export import recorded_ties
from lora_export.graph.spec import tasks
from lora_export.report.refresh_report import refresh_report
from lora_export.runtime.adapter_file import write_onnx_adapter
from lora_export.weights.pooling_source import pooling_beside, require_pooling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_export.commands.recipe import CombineSpec
    from lora_export.commands.resolved_adapters import ResolvedAdapter
    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.manifest import Manifest
    from lora_export.core.modes import Mode
    from lora_export.core.reports.fidelity_report import FidelityReport
    from lora_export.exports.change_adapters import Added
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["add", "add_adapters", "fidelity_report_of", "without_copies_in"]


def add(
    export: str | Path,
    adapters: Sequence[AdapterSpec | str | Path],
    *,
    base: str | Path | None = None,
    combine: CombineSpec | None = None,
    replace: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Add adapters to an existing export, without torch and without tracing.

    Args:
        export: The export directory.
        adapters: The adapters, each as a spec, as ``"[NAME=]PATH"`` or as a path.
        base: The base checkpoint, a folder or an id of the hub; needed for exactness only where
            the export was cast.
        combine: How the adapters become one; None adds each.
        replace: Whether adapters of the same names may be replaced.
        strict: Whether an adapter that names another base is an error.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; an adapter is added whole or not at all.
    """
    export_dir, specs = Path(export), as_specs(adapters)
    manifest = read_manifest(export_dir)
    require_usable(export_dir, manifest)
    config = config_of(export_dir, base)
    given = read_specs(specs, Path(), combine, base_config=config)
    pooling = pooling_beside(export_dir / "hf") if manifest.base.pooling is not None else None
    for one in given:
        require_task(manifest, one.adapter)
        if pooling is not None:
            require_pooling(pooling, one.originals)
    checkpoint = matching_checkpoint(manifest, base)
    tell = progress or Silent()
    given = as_rank_applied(given, checkpoint, mode_of(manifest), tell)
    given = with_notes(
        given,
        base_of_export(export_dir, manifest, checkpoint),
        tell,
        model_type=manifest.base.model_type,
        strict=strict,
    )
    ready = resolve_adapters(
        given,
        parameters_of(manifest),
        prefix=manifest.base.prefix,
        conversions=manifest.base.conversions,
        config=config,
        task=tasks.by_name(manifest.base.task),
        ties=recorded_ties(manifest),
    )
    for each in ready:
        require_base(export_dir, manifest, each.resolved, each.given.originals, checkpoint)
    notes = (
        *notes_of(given),
        *notes_on_resolved([each.resolved for each in ready], tell),
    )
    names = {each.resolved.adapter.name for each in ready}
    with _naming_added(export_dir, manifest, names):
        added = add_adapters(
            export_dir,
            ready,
            output=export_dir,
            checkpoint=checkpoint,
            replace=replace,
            progress=tell,
        )
    return _outcome(export_dir, manifest, names, added, notes=notes, tell=tell)


def _outcome(
    export_dir: Path,
    before: Manifest,
    names: set[str],
    added: Added,
    *,
    notes: tuple[str, ...],
    tell: Progress,
) -> Outcome:
    """Bring the reports up to date, and return the outcome: the adapters are in the export."""
    now = added.manifest
    after = ReportUpdates(export_dir, f"added: {', '.join(sorted(names))}", tell)
    with after.step("the reports could not be brought up to date"):
        replaced = names & set(before.adapters)
        if added.fidelity or replaced:
            _record(export_dir, added, replaced)
        now = refresh_report(export_dir)
    return Outcome(export_dir, now, Reports(fidelity_report_of(added)), (*notes, *after.notes()))


def _record(export_dir: Path, added: Added, replaced: set[str]) -> None:
    """Write what was measured into the reports, and take out what was replaced."""
    from lora_export.verification.record import prune_reports, record_fidelity

    if added.fidelity:
        record_fidelity(export_dir, added.fidelity)
    if replaced:
        prune_reports(export_dir, replaced, measured=added.fidelity)


def fidelity_report_of(added: Added) -> FidelityReport | None:
    """Return the report on what was merged in halves; None where nothing was."""
    if not added.fidelity:
        return None
    from lora_export.core.reports.fidelity_report import FidelityReport

    return FidelityReport(graphs=dict(added.fidelity))


@contextlib.contextmanager
def _naming_added(export_dir: Path, before: Manifest, names: set[str]) -> Iterator[None]:
    """Add to an error which of the adapters are in the export: merged ones are added one by one."""
    try:
        yield
    except LoraExportError as error:
        with contextlib.suppress(LoraExportError):
            held = read_manifest(export_dir).adapters
            done = sorted(
                name for name in names & held.keys() if held[name] != before.adapters.get(name)
            )
            if done:
                said = f"Added before that, and in the export: {', '.join(done)}."
                error.hint = f"{error.hint}\n{said}" if error.hint else said
        raise


def add_adapters(
    export_dir: Path,
    ready: Sequence[ResolvedAdapter],
    *,
    output: Path,
    checkpoint: Checkpoint | None,
    replace: bool,
    progress: Progress,
    mode: Mode | None = None,
) -> Added:
    """Add adapters to the export in `export_dir`; none if one is incomplete. No report is written.

    Args:
        export_dir: The export, or the folder that becomes it.
        ready: The adapters.
        output: Where the export is or will be; the manifest records sources relative to it.
        checkpoint: The base, where it is at hand.
        replace: Whether adapters of the same names may be replaced.
        progress: Told about bytes.
        mode: The mode that the export gets; None for the one that it has.
    """
    manifest = read_manifest(export_dir)
    quantization = manifest.base.quantization
    mode = mode or mode_of(manifest)
    if mode in SHARED_MODES:
        ready = without_copies_in(export_dir, ready)
    resolved = [each.resolved for each in ready]
    companions = _companions(export_dir, manifest, ready, progress)
    require_complete(manifest.base_graph.missing, resolved, manifest.base.source)
    if len(ready) > 1:  # a single one is checked as it is merged
        for one in resolved:
            require_finite_tensors(one.adapter)
    new = [
        NewAdapter(
            each.resolved, _source(each, output), each.labels, each.given.record(output), own
        )
        for each, own in zip(ready, companions, strict=True)
    ]
    measure = measure_of(quantization.method if quantization is not None else None, progress)
    options = AddOptions(checkpoint, replace, progress, write_onnx_adapter, measure)
    return store_adapters(export_dir, mode, new, options)


def _companions(
    export_dir: Path, manifest: Manifest, ready: Sequence[ResolvedAdapter], tell: Progress
) -> list[AdapterCompanions]:
    """Return the files that come with each adapter besides its tensors; show the notes on them."""
    parameters = parameters_of(manifest)
    found = []
    for each in ready:
        how = each.given.combination
        own = companions_for(
            export_dir, manifest, parameters, each.resolved, each.given.originals,
            labels=each.labels, preferred=how.head_from if how is not None else None,
        )  # fmt: skip
        for note in own.notes:
            tell.note(f"note: {note}")
        found.append(own)
    return found


def without_copies_in(
    export_dir: Path, ready: Sequence[ResolvedAdapter]
) -> tuple[ResolvedAdapter, ...]:
    """Return adapters for a graph that they share; see `without_copies`."""
    from lora_export.exports.values import without_copies

    return tuple(
        with_values(each, resolved=without_copies(export_dir, each.resolved)) for each in ready
    )


def _source(ready: ResolvedAdapter, output: Path) -> str:
    """Return where an adapter comes from, as the manifest records it."""
    given = ready.given
    if given.combination is not None:
        return given.adapter.source
    return recorded_source(given.adapter.folder, output)
