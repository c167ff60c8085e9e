"""The files of a tokenizer and a model's config, as the runtimes of a layout read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from lora_export.core.checkpoint_tables import read_checkpoint_table
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.json_file import read_json
from lora_export.core.modes import SWAPPABLE_GRAPH
from lora_export.exports.adapter_companions import companions_of
from lora_export.layouts.tokenizer_config import older_tokenizer_config
from lora_export.ondevice.file_opening import read_file, reason_of, require_file
from lora_export.weights.companion_files import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    LIMIT_BYTES,
    TEMPLATES,
    TOKENIZER,
)
from lora_export.weights.label_names import named_classes, numbered

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.layouts.description import Subject
    from lora_export.weights.companion_files import Content

__all__ = [
    "companion_table",
    "companions",
    "generation_table",
    "json_content",
    "model_config",
    "tokenizer_files",
]

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TOKENIZER: Final = "tokenizer.json"
_AGAIN: Final = "Copy the directory again, or export again."
_TEMPLATE_LIMIT_BYTES: Final = 1 << 22
"""Templates of real models have up to 30 kB."""


def companions(subject: Subject) -> dict[str, Path]:
    """Return the companions of a subject's adapter, or of the base, each a regular file.

    Raises:
        ExportDirectoryError: One is missing, is not a regular file, leads outside the export, or
            is not JSON although its name says so.
    """
    found = companions_of(subject.export_dir, subject.manifest, subject.adapter)
    for name, path in found.items():
        _require_companion(subject, name, path)
    return found


def _require_companion(subject: Subject, name: str, path: Path) -> None:
    if name.endswith(".json"):
        read_json(path, LIMIT_BYTES, ExportDirectoryError, absent=_AGAIN, damaged=_AGAIN)
        return
    try:
        require_file(path)
    except OSError as error:
        msg = f"cannot read {name!r} of the export {str(subject.export_dir)!r}: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint=_AGAIN) from error


def tokenizer_files(files: Mapping[str, Path]) -> dict[str, Content]:
    """Return the files of a tokenizer, as other libraries read them too.

    ``tokenizer_config.json`` is one that transformers 4 reads; see `older_tokenizer_config`.

    Args:
        files: The companions of the base or an adapter; see `companions`.

    Raises:
        ExportDirectoryError: A file is damaged.
    """
    found: dict[str, Content] = {
        name: path
        for name, path in files.items()
        if name in TOKENIZER or TEMPLATES.fullmatch(name) is not None
    }
    if _TOKENIZER_CONFIG not in files:
        return found
    table = companion_table(files, _TOKENIZER_CONFIG)
    template = None
    if CHAT_TEMPLATE in files:
        template = _template(files[CHAT_TEMPLATE])
    changed = older_tokenizer_config(table, has_json=_TOKENIZER in files, template=template)
    if changed != table:
        found[_TOKENIZER_CONFIG] = json_content(changed)
    return found


def _template(path: Path) -> str:
    """Return a chat template, which goes into a table of settings as one text."""
    try:
        return read_file(path, _TEMPLATE_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError as error:
        msg = f"cannot read the chat template {str(path)!r}: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint=_AGAIN) from error


def model_config(subject: Subject, files: Mapping[str, Path], width: int | None) -> JsonObject:
    """Return ``config.json`` for the task of an export: its class, and the names of its classes.

    Args:
        subject: An adapter or the base.
        files: Its companions.
        width: The outputs of the head; None for a task without classes.

    Raises:
        ExportDirectoryError: There is none, or it is damaged.
    """
    manifest = subject.manifest
    table = {**companion_table(files, CONFIG), "architectures": [manifest.base.model_class]}
    if width is None or subject.name == SWAPPABLE_GRAPH:
        return table
    own = manifest.adapters[subject.name].labels if subject.adapter else manifest.base.labels
    names = own or named_classes(table)
    if names is None or len(names) != width:
        names = numbered(width)
    table["id2label"] = {str(index): name for index, name in enumerate(names)}
    table["label2id"] = {name: index for index, name in enumerate(names)}
    table["num_labels"] = width
    return table


def generation_table(files: Mapping[str, Path]) -> JsonObject:
    """Return ``generation_config.json``; empty where there is none.

    Raises:
        ExportDirectoryError: It is damaged.
    """
    return companion_table(files, GENERATION_CONFIG) if GENERATION_CONFIG in files else {}


def json_content(table: Mapping[str, object]) -> bytes:
    """Return a table of settings as the contents of a JSON file."""
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def companion_table(files: Mapping[str, Path], name: str) -> JsonObject:
    """Return a companion in JSON.

    Raises:
        ExportDirectoryError: There is none of this name, or it is damaged.
    """
    if name not in files:
        msg = f"the export has no hf/{name}"
        raise ExportDirectoryError(msg, hint=_AGAIN)
    return read_checkpoint_table(
        files[name], LIMIT_BYTES, ExportDirectoryError, absent=_AGAIN, damaged=_AGAIN
    )
