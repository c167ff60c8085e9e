"""Notes for the user on adapters and their base: shown, and kept for the records.

A note on an adapter goes to the terminal, to ``--json``, into the manifest or the merge record, and
from there into every report. That an adapter names another base is an error under ``--strict``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.adapters.base_name import note_on_base
from lora_export.adapters.missing_modules import describe_missing
from lora_export.adapters.unread_layers import note_on_unread
from lora_export.adapters.zero_updates import describe_zero, trained_items, zero_parameters
from lora_export.core.errors import AdapterError
from lora_export.core.hub import hub_id_of
from lora_export.weights.named_base import GivenBase, given_checkpoint, note_on_named_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.core.manifest import Manifest
    from lora_export.core.progress import Progress
    from lora_export.weights.checkpoint import Checkpoint

__all__ = [
    "base_of_export",
    "notes_of",
    "notes_on_base",
    "notes_on_missing",
    "notes_on_unread",
    "opened_base",
    "with_notes",
]


def opened_base(checkpoint: Checkpoint) -> GivenBase:
    """Return an open checkpoint as the base that is given."""
    return given_checkpoint(checkpoint, hub_id_of(checkpoint.of_adapters.folder))


def base_of_export(
    export_dir: Path, manifest: Manifest, checkpoint: Checkpoint | None
) -> GivenBase:
    """Return the base of an export: the checkpoint where it is given, else what is recorded.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        checkpoint: The base, required to be the export's.
    """
    recorded = manifest.base
    if checkpoint is not None:
        return replace(opened_base(checkpoint), hub_id=recorded.source)
    folder = export_dir / recorded.source
    return GivenBase(
        recorded.source,
        recorded.source,
        folder=folder if folder.is_dir() else None,
        fingerprint=recorded.fingerprint,
    )


def notes_on_base(
    adapters: Iterable[Adapter], base: GivenBase, tell: Progress, *, strict: bool = False
) -> tuple[str, ...]:
    """Return a note for each adapter that names another base, and show it.

    Args:
        adapters: The adapters as they were read.
        base: The base that is given.
        tell: Shows the notes, and how much has been read for them.
        strict: Whether such an adapter is an error.

    Raises:
        AdapterError: There is one, and `strict` is set.
    """
    found = (
        note_on_base(each, base.hub_id) or note_on_named_folder(each, base, tell)
        for each in adapters
    )
    notes = tuple(note for note in found if note is not None)
    if notes and strict:
        raise AdapterError(
            notes[0], hint="Pass the base that it names with --base, or leave out --strict."
        )
    return _shown(notes, tell)


def notes_on_missing(
    adapters: Iterable[Adapter], base: GivenBase, tell: Progress
) -> tuple[str, ...]:
    """Return a note for each adapter whose file lacks modules that it targets, and show it."""
    if base.tensors is None:
        return ()
    found = (describe_missing(each, base.tensors, base.config) for each in adapters)
    return _shown(tuple(note for note in found if note is not None), tell)


def _shown(notes: tuple[str, ...], tell: Progress) -> tuple[str, ...]:
    for note in notes:
        tell.note(f"note: {note}")
    return notes


def with_notes(
    given: Sequence[LoadedAdapter],
    base: GivenBase,
    tell: Progress,
    *,
    model_type: str,
    strict: bool = False,
) -> tuple[LoadedAdapter, ...]:
    """Return the adapters with their notes, and show them.

    The notes are on the named base, missing modules, updates of zero and unread layers.

    Args:
        given: The adapters.
        base: The base that is given.
        tell: Shows the notes, and how much has been read for them.
        model_type: The base's ``model_type``.
        strict: Whether an adapter that names another base is an error.

    Raises:
        AdapterError: One names another base, and `strict` is set.
    """
    noted = []
    for each in given:
        notes = notes_on_base(each.originals, base, tell, strict=strict)
        notes = (*notes, *notes_on_missing(each.originals, base, tell))
        items = trained_items(each.adapter.items)
        zero = describe_zero(zero_parameters(items), len(items), each.adapter.source)
        if zero is not None:
            notes = (*notes, *_shown((zero,), tell))
        stored = tuple(base.tensors or ())
        notes = (*notes, *notes_on_unread(each.originals, model_type, tell, stored))
        notes = (*each.adapter.notes, *notes)
        noted.append(replace(each, adapter=replace(each.adapter, notes=notes)))
    return tuple(noted)


def notes_on_unread(
    adapters: Iterable[Adapter], model_type: str, tell: Progress, stored: Collection[str] = ()
) -> tuple[str, ...]:
    """Return a note for each adapter with updates that PEFT ignores unmerged, and show it.

    Args:
        adapters: The adapters as they were read.
        model_type: The base's ``model_type``.
        tell: Shows the notes.
        stored: The names of the base's tensors.
    """
    found = (note_on_unread(each, model_type, stored) for each in adapters)
    return _shown(tuple(note for note in found if note is not None), tell)


def notes_of(given: Iterable[LoadedAdapter]) -> tuple[str, ...]:
    """Return the notes of all adapters."""
    return tuple(note for each in given for note in each.adapter.notes)
