"""What lies beside the weights of a checkpoint: config, tokenizer, generation settings."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from lora_export.base.files import sha256_of_file, storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["labelled", "write_companions"]


def write_companions(
    folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> dict[str, str]:
    """Copy the companions of `checkpoint` into the existing `folder`, its config replaced.

    Returns:
        The SHA-256 of each file by its name in `folder`.

    Raises:
        StorageError: The disk refuses.
    """
    files: dict[str, str] = {}
    with storage_errors(str(folder)):
        for companion in checkpoint.companions:
            name = companion.relative_to(checkpoint.folder).as_posix()
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            if name == "config.json":
                target.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            else:
                shutil.copyfile(companion, target)
            files[name] = sha256_of_file(target)
    return files


def labelled(config: Mapping[str, Any], labels: Sequence[str] | None) -> dict[str, Any]:
    """Return `config` with the names of the head's classes, where they are given."""
    table = dict(config)
    if labels:
        table["id2label"] = {str(index): name for index, name in enumerate(labels)}
        table["label2id"] = {name: index for index, name in enumerate(labels)}
    return table
