"""The files beside the weights of a checkpoint, written: config, tokenizer, generation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_export.core.files import copy_file, sha256_of_file, storage_errors, write_synced
from lora_export.weights.pooling_source import sentence_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.companion_files import Content
    from lora_export.weights.own_companions import OwnCompanions

__all__ = ["labelled", "write_companions"]


def write_companions(
    folder: Path,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    brought: OwnCompanions | None = None,
) -> dict[str, str]:
    """Copy the companions of `checkpoint` into the existing `folder`, its config replaced.

    Args:
        folder: An existing folder.
        checkpoint: The base.
        config: What ``config.json`` becomes.
        brought: What an adapter brings in place of the base's companions.

    Returns:
        The SHA-256 of each file by its name in `folder`.

    Raises:
        InputError: A companion cannot be read, or is not a regular file.
        StorageError: The disk refuses.
    """
    files: dict[str, str] = {}
    base = {
        companion.relative_to(checkpoint.folder).as_posix(): companion
        for companion in checkpoint.companions
    }
    contents: dict[str, Content] = {**(brought.over(base) if brought is not None else base)}
    if checkpoint.pooling is not None:
        contents |= sentence_files(checkpoint.pooling)
    contents["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    with storage_errors(str(folder)):
        for name, content in contents.items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                write_synced(target, content)
            else:
                copy_file(content, target)
            files[name] = sha256_of_file(target)
    return files


def labelled(config: Mapping[str, Any], labels: Sequence[str] | None) -> JsonObject:
    """Return `config` with the names of the head's classes, where they are given."""
    table = dict(config)
    if labels:
        table["id2label"] = {str(index): name for index, name in enumerate(labels)}
        table["label2id"] = {name: index for index, name in enumerate(labels)}
    return table
