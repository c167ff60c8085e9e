"""The files that come with an adapter besides its tensors, in an export: ``hf/<adapter>/``.

``hf/`` holds the companions of the base: config, tokenizer, generation settings. ``hf/<adapter>/``
holds the files of an adapter that differ from these, and ``config.json`` where its classes or
special tokens do. The manifest lists them, and the base's files that do not hold for the adapter;
`companions_of` puts both together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.vocabulary import resized_config
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.files import copy_file, resolve_inside, storage_errors, write_synced
from lora_export.core.manifest import CompanionsRecord
from lora_export.exports.plan import head_parameters
from lora_export.graph.spec import tasks
from lora_export.ondevice.file_opening import reason_of, require_file
from lora_export.weights.companion_files import CONFIG, companion_files, read_content
from lora_export.weights.label_names import config_of_head, names_of_head, note_on_names
from lora_export.weights.own_companions import own_companions
from lora_export.weights.special_tokens import read_table, with_special_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.core.json_file import JsonObject
    from lora_export.core.manifest import Manifest
    from lora_export.core.parameters import Parameter
    from lora_export.weights.companion_files import Content
    from lora_export.weights.own_companions import OwnCompanions

__all__ = [
    "NO_COMPANIONS",
    "AdapterCompanions",
    "companions_for",
    "companions_of",
    "copy_companions",
    "folder_of",
    "stage_companions",
]

FOLDER: Final = "hf"
_PADDING: Final = "pad_token_id"
_DECODER_HEAD: Final = "score.weight"
"""The head of decoders that classify, which read the last token before the padding."""


@dataclass(frozen=True)
class AdapterCompanions:
    """The files that come with an adapter, to be written into the export.

    Attributes:
        contents: The files by their names below ``hf/<adapter>/``.
        record: What the manifest says of them; None where there are none.
        labels: The names of the head's classes; None for a task without.
        notes: What the user should know.
    """

    contents: Mapping[str, Content] = field(default_factory=dict)
    record: CompanionsRecord | None = None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


NO_COMPANIONS: Final = AdapterCompanions()


def folder_of(adapter: str) -> str:
    """Return where the companions of an adapter are in an export."""
    return f"{FOLDER}/{adapter}"


def companions_of(
    export_dir: Path, manifest: Manifest, adapter: str | None = None
) -> dict[str, Path]:
    """Return the companions of an adapter, or of the base, by their names in one folder.

    Those of an adapter are the base's, with its own files in their place.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        adapter: The adapter; None for the base.

    Raises:
        ExportDirectoryError: A file leads outside `export_dir`.
    """
    base = {
        name: resolve_inside(export_dir, f"{FOLDER}/{name}")
        for name in companion_files(export_dir / FOLDER)
    }
    own = manifest.adapters.get(adapter or "")
    if own is None or own.companions is None:
        return base
    kept = {name: path for name, path in base.items() if name not in own.companions.hidden}
    return kept | {
        name: resolve_inside(export_dir, f"{folder_of(adapter or '')}/{name}")
        for name in own.companions.files
    }


def copy_companions(
    export_dir: Path, manifest: Manifest, folder: Path, adapter: str | None = None
) -> None:
    """Copy the companions of an adapter, or of the base, into one folder, as libraries want them.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        folder: Where they go; made if absent.
        adapter: The adapter; None for the base.

    Raises:
        ExportDirectoryError: A file is missing, or leads outside `export_dir`.
        StorageError: The disk refuses.
    """
    for name, path in companions_of(export_dir, manifest, adapter).items():
        try:
            require_file(path)
        except OSError as error:
            what = f"{str(path.relative_to(export_dir))!r} of the export {str(export_dir)!r}"
            msg = f"cannot read {what}: {reason_of(error)}"
            hint = "Copy the directory again, or export again."
            raise ExportDirectoryError(msg, hint=hint) from error
        with storage_errors(str(folder)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(path, folder / name)


def companions_for(
    export_dir: Path,
    manifest: Manifest,
    parameters: Sequence[Parameter],
    resolved: Resolved,
    originals: Sequence[Adapter],
    *,
    labels: Sequence[str] | None,
    preferred: str | None = None,
) -> AdapterCompanions:
    """Return the companions of an adapter that is added to an export.

    Args:
        export_dir: The export directory, with the base's companions.
        manifest: Its manifest.
        parameters: Those of the base graph.
        resolved: The adapter.
        originals: The adapters that it was read from: itself, or those that it was combined of.
        labels: Names of the classes that the user gives.
        preferred: The one of several originals whose companions count.

    Raises:
        AdapterError: Several originals bring something different; a file is damaged or too large.
    """
    base = companion_files(export_dir / FOLDER)
    grown = resolved.vocabulary
    brought = own_companions(
        originals, base, preferred=preferred, rows=grown.after if grown is not None else None
    )
    config = read_table(base, CONFIG, ExportDirectoryError)
    own, names = _own_config(config, manifest, parameters, resolved, brought=brought, labels=labels)
    contents = {name: each for name, each in brought.files.items() if name != CONFIG}
    if config and own != config:
        contents[CONFIG] = (json.dumps(own, indent=2) + "\n").encode()
    record = None
    if contents or brought.hidden:
        record = CompanionsRecord(
            files=sorted(contents), hidden=sorted(brought.hidden), taken=list(brought.taken)
        )
    notes = list(brought.notes)
    if names is not None and not manifest.base_graph.missing:
        lost = note_on_names(resolved.adapter.name, names, config)
        notes += [lost] if lost is not None else []
    padding = brought.tokens.get(_PADDING)
    held = config.get(_PADDING)
    if any(each.name == _DECODER_HEAD for each in parameters) and padding not in {None, held}:
        notes.append(
            f"adapter {resolved.adapter.name!r} pads texts with the token {padding}; its graph "
            f"finds the end of a text by {held}: pad with that one"
        )
    return AdapterCompanions(contents, record, names, tuple(notes))


def _own_config(
    config: Mapping[str, Any],
    manifest: Manifest,
    parameters: Sequence[Parameter],
    resolved: Resolved,
    *,
    brought: OwnCompanions,
    labels: Sequence[str] | None,
) -> tuple[JsonObject, tuple[str, ...] | None]:
    """Return the ``config.json`` of an adapter, and the names of its classes."""
    task = tasks.by_name(manifest.base.task)
    tokens = dict(brought.tokens)
    if config.get(_PADDING) is not None:
        tokens.pop(_PADDING, None)  # the graph computes with the base's
    grown = resolved.vocabulary
    table = with_special_tokens(config if grown is None else resized_config(config, grown), tokens)
    saved = {
        update.parameter.name: update.saved.tensor.shape[0]
        for update in resolved.updates
        if update.saved is not None and update.saved.tensor.shape
    }
    shapes = {each.name: each.shape[0] for each in parameters if each.shape}
    weights = [name for name in task.label_parameters if name in shapes]
    if not weights:
        return table, None
    brings = any(name in saved for name in head_parameters(task))
    width = next((saved[name] for name in weights if name in saved), shapes[weights[0]])
    given = labels if labels is not None else None if brings else manifest.base.labels
    names = names_of_head(width, given=given, own=brought.config, base=config, brought=brings)
    if not brings and labels is None and names == _names_of_base(config, width):
        return table, names
    table = config_of_head(table, names, own=brought.config, brought=brings)
    if brings:
        table["architectures"] = [manifest.base.model_class]
    return table, names


def _names_of_base(config: Mapping[str, Any], width: int) -> tuple[str, ...]:
    return names_of_head(width, given=None, own={}, base=config, brought=False)


def stage_companions(
    staging: Path, adapter: str, contents: Mapping[str, Content]
) -> dict[str, str]:
    """Write the companions of an adapter below the folder `staging`; return each file's SHA-256.

    Raises:
        AdapterError: A file is too large, or cannot be read.
        StorageError: The disk refuses.
    """
    files: dict[str, str] = {}
    for name, content in contents.items():
        file = f"{folder_of(adapter)}/{name}"
        with storage_errors(file):
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
        data = read_content(content)
        files[file] = write_synced(staging / file, data)
    return files
