"""What building an export and maintaining one have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.adapters.delta import require_finite_tensors
from lora_export.adapters.naming import to_model_names
from lora_export.adapters.resolve import Names, Resolved, resolve
from lora_export.base.adapter_names import adapter_name_from
from lora_export.base.errors import (
    AdapterError,
    ExportDirectoryError,
    LatencyError,
    ParityError,
    UsageError,
)
from lora_export.base.hub import local_path
from lora_export.base.manifest import Manifest, read_manifest
from lora_export.exports.companions import AdapterCompanions, companions_for
from lora_export.exports.extend import add_adapter, parameters_of
from lora_export.exports.packs import SWAPPABLE, add_pack, is_swappable, require_slots
from lora_export.exports.plan import head_parameters, head_width, require_complete
from lora_export.exports.stack_table import NewAdapter
from lora_export.exports.stacks import BATCHED, change_rows, is_batched
from lora_export.exports.values import without_copies
from lora_export.parts import Given, again, recorded_source
from lora_export.recipe import AdapterSpec
from lora_export.runtime.adapter_file import write_onnx_adapter
from lora_export.verify.record import record_fidelity
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint, read_config
from lora_export.weights.fidelity import LOSSY_RELATIVE_ERROR
from lora_export.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.ties import TieGroup
    from lora_export.base.conversions import Conversion
    from lora_export.base.manifest import AdapterRecord, PartRecord
    from lora_export.base.parameters import Parameter
    from lora_export.base.progress import Progress
    from lora_export.graph.tasks import Task

__all__ = [
    "Outcome",
    "Ready",
    "add_all",
    "checked_labels",
    "config_of",
    "find_adapters",
    "matching_checkpoint",
    "prepare",
    "without_copies_in",
]


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        output: The export directory.
        manifest: Its manifest.
        reports: The reports that were written, by name.
        notes: What the user should know of the adapters.
    """

    output: Path
    manifest: Manifest
    reports: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0, or the code of the gate that failed.

        `strict` fails what is ambiguous, and an adapter that was to be verified and is not.
        """
        for report, error in (("parity", ParityError), ("latency", LatencyError)):
            for name, row in self.reports.get(report, {}).get("graphs", {}).items():
                open_question = row["verdict"] == "ambiguous" or (
                    row["verdict"] == "unverified"
                    and name in {*self.manifest.adapters, SWAPPABLE, BATCHED}
                )
                if row["verdict"] == "fail" or (strict and open_question):
                    return error.exit_code
        return 0


@dataclass(frozen=True)
class Ready:
    """An adapter that can be merged: resolved against the model, its labels known."""

    resolved: Resolved
    labels: tuple[str, ...] | None
    given: Given


def prepare(
    given: Sequence[Given],
    parameters: Sequence[Parameter],
    *,
    prefix: str,
    conversions: Sequence[Conversion],
    config: Mapping[str, Any] | None,
    task: Task,
    labels: Sequence[str] | None = None,
    ties: Sequence[TieGroup] = (),
) -> tuple[Ready, ...]:
    """Resolve adapters against the parameters of a graph.

    Args:
        given: The adapters, with their lines in the recipe.
        parameters: What the base graph reads.
        prefix: ``base_model_prefix`` with its dot.
        conversions: How transformers loads a checkpoint of the model.
        config: The base's ``config.json``, where it is at hand.
        task: The task.
        labels: Names of the classes for adapters whose line has none.
        ties: Parameters that the base ties and the graph holds apart.
    """
    names = Names(parameters, prefix)
    return tuple(
        Ready(
            resolve(
                to_model_names(
                    each.adapter, names, conversions, config=config, drop=each.spec.drop
                ),
                parameters,
                prefix=prefix,
                drop=each.spec.drop,
                resizable=head_parameters(task),
                ties=ties,
            ),
            checked_labels(task, parameters, each.spec.labels or labels, adapter=each.adapter),
            each,
        )
        for each in given
    )


def add_all(
    root: Path,
    ready: Sequence[Ready],
    *,
    output: Path,
    checkpoint: Checkpoint | None,
    replace: bool,
    progress: Progress,
    batched: bool = False,
) -> tuple[Manifest, dict[str, Any]]:
    """Add adapters to the export in `root` one after the other; none if one is incomplete.

    Returns the manifest, and the reports: ``fidelity`` where something is merged in halves. Of a
    swappable export they become packs, of a batched one rows.

    Args:
        root: The export, or the folder that becomes it.
        ready: The adapters.
        output: Where the export is or will be; the manifest records sources relative to it.
        checkpoint: The base, where it is at hand.
        replace: Whether adapters of the same names may be replaced.
        progress: Told about bytes.
        batched: Whether the export becomes a batched one.
    """
    manifest = read_manifest(root)
    if batched or is_batched(manifest) or is_swappable(manifest):
        ready = without_copies_in(root, ready)
    resolved = [each.resolved for each in ready]
    companions = _companions(root, manifest, ready, progress)
    require_complete(manifest.graphs["base"].missing, resolved, manifest.base.source)
    if len(ready) > 1:  # a single one is checked as it is merged
        for one in resolved:
            require_finite_tensors(one.adapter)
    if batched or is_batched(manifest):
        progress.start("stacks")
        new = [
            NewAdapter(
                each.resolved, _source(each, output), each.labels, each.given.record(output), own
            )
            for each, own in zip(ready, companions, strict=True)
        ]
        return change_rows(root, new, replace=replace), {}
    if is_swappable(manifest):
        require_slots(root, manifest, resolved)
        for each, own in zip(ready, companions, strict=True):
            progress.start(f"adapter {each.resolved.adapter.name}")
            manifest = add_pack(
                root,
                each.resolved,
                source=_source(each, output),
                labels=each.labels,
                replace=replace,
                write=write_onnx_adapter,
                combined=each.given.record(output),
                companions=own,
            )
        return manifest, {}
    kept: dict[str, Any] = {}
    for each, own in zip(ready, companions, strict=True):
        added = add_adapter(
            root,
            each.resolved,
            source=_source(each, output),
            combined=each.given.record(output),
            checkpoint=checkpoint,
            labels=each.labels,
            replace=replace,
            progress=progress,
            companions=own,
        )
        manifest = added.manifest
        if added.fidelity is not None:
            name = each.resolved.adapter.name
            kept[name] = added.fidelity
            _warn_of_loss(name, added.fidelity, progress)
    if not kept:
        return manifest, {}
    return record_fidelity(root, kept), {"fidelity": {"graphs": kept}}


def _companions(
    root: Path, manifest: Manifest, ready: Sequence[Ready], tell: Progress
) -> list[AdapterCompanions]:
    """Return the files that come with each adapter besides its tensors; show the notes on them."""
    parameters = parameters_of(manifest)
    found = []
    for each in ready:
        how = each.given.combination
        own = companions_for(
            root, manifest, parameters, each.resolved, each.given.originals,
            labels=each.labels, preferred=how.head_from if how is not None else None,
        )  # fmt: skip
        for note in own.notes:
            tell.note(f"note: {note}")
        found.append(own)
    return found


def without_copies_in(root: Path, ready: Sequence[Ready]) -> tuple[Ready, ...]:
    """Return adapters for a graph that they share; see `without_copies`."""
    return tuple(replace(each, resolved=without_copies(root, each.resolved)) for each in ready)


def _source(ready: Ready, output: Path) -> str:
    """Return where an adapter comes from, as the manifest records it."""
    given = ready.given
    if given.combination is not None:
        return given.adapter.source
    return recorded_source(given.adapter.folder, output)


def _warn_of_loss(name: str, row: dict[str, Any], tell: Progress) -> None:
    if not row["lossy"]:
        return
    worst = row["lossy"][0]
    tensor = row["tensors"][worst]
    tell.note(
        f"warning: {len(row['lossy'])} tensor(s) of {name} keep the adapter's delta with a "
        f"relative error above {LOSSY_RELATIVE_ERROR[tensor['dtype']]:g}: {worst!r} in "
        f"{tensor['dtype']} has {tensor['relative_error']:.3g}. Export in float32: --dtype float32."
    )


def checked_labels(
    task: Task,
    parameters: Sequence[Parameter],
    labels: Sequence[str] | None,
    *,
    adapter: Adapter | None = None,
) -> tuple[str, ...] | None:
    """Return the labels, required to be as many as the adapter's or the base's head is wide."""
    if labels is None:
        return None
    own = [each.shape[0] for each in parameters if each.name in task.label_parameters]
    brought = head_width(task, adapter) if adapter is not None else None
    width = brought or next(iter(own), None)
    if width is None:
        msg = f"the task {task.name!r} has no labels"
        raise UsageError(msg, hint="Leave labels (--labels) out.")
    if width != len(labels):
        msg = f"{len(labels)} labels are given, but the head has {width} outputs"
        raise UsageError(msg, hint="Give as many names as the head has outputs, in their order.")
    return tuple(labels)


def config_of(output: Path, base: str | Path | None) -> Mapping[str, Any] | None:
    """Return the config of the base, or of its copy in the export; None without either."""
    copy = output / "hf"
    if base is None and not (copy / "config.json").is_file():
        return None
    return read_config(copy if base is None else local_path(str(base)))


def find_adapters(
    output: Path,
    manifest: Manifest,
    specs: Sequence[AdapterSpec],
    config: Mapping[str, Any],
    *,
    only: Collection[str] | None = None,
) -> dict[str, Adapter]:
    """Read the adapters of an export, or `only` some, from where `specs` or else the manifest says.

    Raises:
        AdapterError: One is not there, or not of this export.
    """
    given = {spec.name or adapter_name_from(Path(spec.source).name): spec for spec in specs}
    records = manifest.adapters.values()
    parts = {part.name for record in records if record.combined for part in record.combined.parts}
    if unknown := sorted(set(given) - set(manifest.adapters) - parts):
        msg = f"the export holds no adapter {unknown[0]!r}"
        raise AdapterError(msg, hint=f"It holds: {', '.join(manifest.adapters) or 'none'}.")

    def locate(name: str, record: AdapterRecord | PartRecord) -> AdapterSpec:
        if name in given:
            return given[name]
        folder = local_path(record.source, output)
        if not folder.exists():
            msg = f"adapter {name!r} is not at {str(folder)!r} any more"
            raise AdapterError(msg, hint=f"Say where it is: --adapter {name}=PATH")
        return AdapterSpec(source=str(folder), format=record.format)

    names = Names(parameters_of(manifest), manifest.base.prefix)
    return {
        name: to_model_names(
            again(name, record, locate, base_config=config),
            names,
            manifest.base.conversions,
            config=config,
            drop=record.dropped,
        )
        for name, record in manifest.adapters.items()
        if only is None or name in only
    }


def matching_checkpoint(manifest: Manifest, base: str | Path | None) -> Checkpoint | None:
    """Open the base of an export where it is given; None where it is not.

    Raises:
        ExportDirectoryError: It is another base than the export's.
    """
    if base is None:
        return None
    checkpoint = open_checkpoint(local_path(str(base)), source=str(base))
    digest = fingerprint(checkpoint)
    if digest != manifest.base.fingerprint:
        msg = (
            f"{str(base)!r} is not the base of this export: its fingerprint is {digest[:16]}…, "
            f"the export's {manifest.base.fingerprint[:16]}…"
        )
        raise ExportDirectoryError(msg, hint=f"The export was made from {manifest.base.source!r}.")
    return checkpoint
