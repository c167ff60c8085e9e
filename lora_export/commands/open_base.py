"""The base of a command: a checkpoint, or the original of the quantized one that is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.commands.adapter_inputs import recorded_source
from lora_export.core.hub import local_path
from lora_export.core.quantization_record import TrainingBase
from lora_export.weights.base_override import require_original
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint
from lora_export.weights.companion_files import VOCABULARIES
from lora_export.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from lora_export.core.quantization_record import StoredForm

__all__ = ["note_on_tokenizer", "open_base", "training_base"]


def open_base(base: str, override: str | None, folder: Path = Path()) -> Checkpoint:
    """Open the base of a command.

    Args:
        base: The checkpoint that the adapters were trained on: a folder, or an id of the hub.
        override: The original of it, where that one is quantized and this one's weights are used.
        folder: Where relative paths begin.

    Raises:
        UsageError: There is an original, and the base is not quantized.
        CheckpointError: One of them is damaged, or they are not one model.
    """
    checkpoint = open_checkpoint(local_path(base, folder), source=base)
    if override is None:
        return checkpoint
    original = open_checkpoint(local_path(override, folder), source=override)
    require_original(original, checkpoint)
    return replace(original, trained_on=checkpoint)


def note_on_tokenizer(checkpoint: Checkpoint) -> str | None:
    """Return a sentence for the user where a GGUF base has no tokenizer beside it, else None.

    GGUF holds the tokenizer in a form of its own, which is not converted.
    """
    beside = {path.name for path in checkpoint.companions}
    if checkpoint.file is None or not beside.isdisjoint(VOCABULARIES):
        return None
    return (
        f"the base {checkpoint.source!r} has no tokenizer files beside it, so the result has none: "
        "copy them from the original model (tokenizer.json, tokenizer_config.json)"
    )


def training_base(checkpoint: Checkpoint, output: Path) -> TrainingBase | None:
    """Return the record of the quantized checkpoint whose original `checkpoint` is, if it is one.

    Args:
        checkpoint: The base.
        output: The folder that the record is in; the source is relative to it.
    """
    trained_on = checkpoint.trained_on
    if trained_on is None:
        return None
    stored: StoredForm | None = trained_on.stored_form
    assert stored is not None  # noqa: S101  (require_original has looked)
    source = recorded_source(trained_on.place, output)
    return TrainingBase(source=source, fingerprint=fingerprint(trained_on), stored=stored)
