"""Adapters added to an export and removed from it, by a table with a row for each mode.

A build and ``add`` call the same function, so that their results are equal bit for bit. What writes
the files of a graph that adapters share is imported for an export that has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_export.core.manifest import read_manifest
from lora_export.core.modes import Mode
from lora_export.exports import merged_adapters
from lora_export.exports.stored_adapters import mode_of
from lora_export.weights.fidelity import LOSSY_RELATIVE_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.core.progress import Progress
    from lora_export.core.reports.fidelity_report import FidelityRow
    from lora_export.exports.create import MeasureMoments
    from lora_export.exports.new_adapter import NewAdapter
    from lora_export.exports.packs import WriteAdapter
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["CHANGES", "AdapterChanges", "AddOptions", "Added", "remove_adapter", "store_adapters"]


@dataclass(frozen=True)
class AddOptions:
    """The arguments of adding adapters, besides the adapters.

    Attributes:
        checkpoint: The base, where it is at hand.
        replace: Whether adapters of the same names may be replaced.
        progress: Told what happens, and about bytes.
        write: Writes an ``.onnx_adapter``.
        measure: Measures what products are given in the base's graph, for a method that needs it.
    """

    checkpoint: Checkpoint | None
    replace: bool
    progress: Progress
    write: WriteAdapter
    measure: MeasureMoments | None = None


@dataclass(frozen=True)
class Added:
    """The result of adding adapters.

    Attributes:
        manifest: The manifest that names them.
        fidelity: For each adapter that is merged in halves, what they kept of it.
    """

    manifest: Manifest
    fidelity: Mapping[str, FidelityRow] = field(default_factory=dict)


def store_adapters(
    export_dir: Path, mode: Mode, new: Sequence[NewAdapter], options: AddOptions
) -> Added:
    """Add adapters to an export of `mode`.

    Raises:
        AdapterError: A name is taken, or a tensor of an adapter is damaged.
        UnsupportedError: A graph that adapters share cannot take an adapter.
        StorageError: The disk refuses; what is not yet added is as it was.
    """
    return CHANGES[mode].add(export_dir, new, options)


def remove_adapter(export_dir: Path, name: str) -> Manifest:
    """Remove an adapter from an export, with all its files.

    Raises:
        AdapterError: The export has no adapter of this name.
    """
    return CHANGES[mode_of(read_manifest(export_dir))].remove(export_dir, name)


def _merge(export_dir: Path, new: Sequence[NewAdapter], options: AddOptions) -> Added:
    manifest = read_manifest(export_dir)
    kept: dict[str, FidelityRow] = {}
    for each in new:
        added = merged_adapters.add_adapter(
            export_dir,
            each.resolved,
            source=each.source,
            combined=each.combined,
            checkpoint=options.checkpoint,
            labels=each.labels,
            replace=options.replace,
            progress=options.progress,
            companions=each.companions,
            measure=options.measure,
        )
        manifest = added.manifest
        if added.fidelity is not None:
            kept[each.name] = added.fidelity
            _warn_of_loss(each.name, added.fidelity, options.progress)
    return Added(manifest, kept)


def _warn_of_loss(name: str, row: FidelityRow, progress: Progress) -> None:
    if not row.lossy:
        return
    worst = row.lossy[0]
    tensor = row.tensors[worst]
    progress.note(
        f"warning: {len(row.lossy)} tensor(s) of {name} keep the adapter's delta with a "
        f"relative error above {LOSSY_RELATIVE_ERROR[tensor.dtype]:g}: {worst!r} in "
        f"{tensor.dtype} has {tensor.relative_error:.3g}. Export in float32: --dtype float32."
    )


def _add_packs(export_dir: Path, new: Sequence[NewAdapter], options: AddOptions) -> Added:
    from lora_export.exports.packs import add_pack, require_slots

    manifest = read_manifest(export_dir)
    require_slots(export_dir, manifest, [each.resolved for each in new])
    for each in new:
        options.progress.start(f"adding adapter {each.name}")
        manifest = add_pack(
            export_dir,
            each.resolved,
            source=each.source,
            labels=each.labels,
            replace=options.replace,
            write=options.write,
            combined=each.combined,
            companions=each.companions,
        )
    return Added(manifest)


def _add_rows(export_dir: Path, new: Sequence[NewAdapter], options: AddOptions) -> Added:
    from lora_export.exports.stacks import change_rows

    options.progress.start("writing the stacks")
    return Added(change_rows(export_dir, new, replace=options.replace))


def _remove_row(export_dir: Path, name: str) -> Manifest:
    from lora_export.exports.stacks import change_rows

    return change_rows(export_dir, gone=name)


@dataclass(frozen=True)
class AdapterChanges:
    """The functions that add adapters to an export of one mode and remove one."""

    add: Callable[[Path, Sequence[NewAdapter], AddOptions], Added]
    remove: Callable[[Path, str], Manifest]


CHANGES: Final[Mapping[Mode, AdapterChanges]] = {
    Mode.MERGED: AdapterChanges(_merge, merged_adapters.remove_adapter),
    Mode.SWAPPABLE: AdapterChanges(_add_packs, merged_adapters.remove_adapter),
    Mode.BATCHED: AdapterChanges(_add_rows, _remove_row),
}
