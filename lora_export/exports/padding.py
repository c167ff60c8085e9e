"""The padding token of a decoder that classifies: its graph finds the end of each text by it.

``LlamaForSequenceClassification`` and its kin read the last token that is not
``config.pad_token_id``. Where the base's config names none, training takes it from the tokenizer,
which is saved with the adapter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.weights.companion_files import CONFIG, adapter_folder, companion_files
from lora_export.weights.special_tokens import read_table, special_ids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["as_exported", "padded_as", "with_padding_of"]

_KEY: Final = "pad_token_id"


def with_padding_of(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """Return a base without a padding token with the one of its adapters' tokenizers.

    Raises:
        AdapterError: A file of an adapter's tokenizer is damaged.
        UnsupportedError: Two adapters pad with different tokens.
    """
    if checkpoint.config.get(_KEY) is not None:
        return checkpoint
    rows = checkpoint.config.get("vocab_size")
    known: list[tuple[str, int]] = []
    for each in adapters:
        folder = adapter_folder(each)
        token = special_ids(companion_files(folder)).get(_KEY) if folder is not None else None
        if token is not None and (not isinstance(rows, int) or token < rows):
            known.append((each.name, token))
    for name, token in known[1:]:
        if token != known[0][1]:
            msg = (
                f"adapter {known[0][0]!r} pads texts with the token {known[0][1]}, {name!r} with "
                f"{token}, and the base's config names no pad_token_id"
            )
            raise UnsupportedError(
                msg,
                hint="One graph finds the end of a text by one token. Set pad_token_id in the "
                "base's config.json, or export them apart.",
            )
    if not known:
        return checkpoint
    return replace(checkpoint, config={**checkpoint.config, _KEY: known[0][1]})


def padded_as(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return `checkpoint` with the padding token of `other`, which was merged from it."""
    held = other.config.get(_KEY)
    return (
        checkpoint
        if held is None
        else replace(checkpoint, config={**checkpoint.config, _KEY: held})
    )


def as_exported(checkpoint: Checkpoint, export_dir: Path) -> Checkpoint:
    """Return a base without a padding token with the one that its export computes with.

    Args:
        checkpoint: The base of the export.
        export_dir: The export directory.

    Raises:
        ExportDirectoryError: ``hf/config.json`` is damaged.
    """
    held = read_table(companion_files(export_dir / "hf"), CONFIG, ExportDirectoryError).get(_KEY)
    if checkpoint.config.get(_KEY) is not None or held is None:
        return checkpoint
    return replace(checkpoint, config={**checkpoint.config, _KEY: held})
