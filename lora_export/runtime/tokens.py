"""Text to token ids and back, with the tokenizer and the settings of a base or an adapter."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Final

import numpy as np

from lora_export.core.checkpoint_tables import read_checkpoint_table
from lora_export.core.config_numbers import text_settings, whole_number
from lora_export.core.errors import (
    ExportDirectoryError,
    InputError,
    MissingRuntimeError,
    UsageError,
)
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES
from lora_export.runtime.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.json_file import JsonObject

__all__ = [
    "READ",
    "TOKENIZER_FILE",
    "first_tokens",
    "open_tokenizer",
    "padded",
    "padding_token",
    "read_settings",
    "require_rows",
    "stop_tokens",
]

TOKENIZER_FILE: Final = "tokenizer.json"
READ: Final = (TOKENIZER_FILE, "config.json", "generation_config.json")
"""The companions that are read here."""


def open_tokenizer(files: Mapping[str, Path]) -> TextTokenizer:
    """Return the tokenizer of a base or an adapter, with its own settings.

    Args:
        files: The companions of the base or the adapter, by name; see `exports.adapter_companions`.

    Raises:
        MissingRuntimeError: ``tokenizers`` is not installed.
        InputError: ``tokenizer.json`` is missing or damaged.
    """
    if importlib.util.find_spec("tokenizers") is None:
        msg = "text has to be tokenized, and tokenizers is not installed"
        raise MissingRuntimeError(msg, hint="Install it with: pip install tokenizers")
    path = files.get(TOKENIZER_FILE)
    if path is None:
        msg = f"cannot read the tokenizer: there is no {TOKENIZER_FILE}"
        raise InputError(
            msg, hint="The base needs one beside its weights, or the adapter in its folder."
        )
    return TextTokenizer(path)


def require_rows(rows: Sequence[Sequence[int]], config: JsonObject) -> None:
    """Require that a model has rows for tokens.

    Args:
        rows: The tokens of each text.
        config: The model's ``config.json``.

    Raises:
        InputError: The tokenizer makes a token beyond the vocabulary of the config.
    """
    size = text_settings(config).get("vocab_size")
    largest = max((token for row in rows for token in row), default=0)
    if size and largest >= size:
        msg = f"{TOKENIZER_FILE} makes the token {largest}, and the model has rows for {size}"
        raise InputError(msg, hint="The tokenizer is not that of the model: copy it again.")


def padded(
    rows: Sequence[Sequence[int]], padding: int, *, left: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows of ids as ``[batch, longest]``, and which positions count.

    Raises:
        UsageError: A row has no tokens.
    """
    if not all(rows):
        msg = "a prompt has no tokens"
        raise UsageError(msg, hint="Give at least one word.")
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), padding, np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[at, place] = row
        mask[at, place] = 1
    return ids, mask


def read_settings(files: Mapping[str, Path]) -> tuple[JsonObject, JsonObject]:
    """Return ``config.json`` and ``generation_config.json``; empty where one is not there.

    Args:
        files: The companions of the base or the adapter, by name.

    Raises:
        ExportDirectoryError: One is damaged.
    """
    config, generation = (_table(files.get(name)) for name in READ[1:])
    return config, generation


def _table(path: Path | None) -> JsonObject:
    if path is None or not os.path.lexists(path):
        return {}
    again = "Copy the file again, or export again."
    return read_checkpoint_table(
        path, TABLE_LIMIT_BYTES, ExportDirectoryError, absent=again, damaged=again
    )


def stop_tokens(config: JsonObject, generation: JsonObject) -> frozenset[int]:
    """Return the tokens that end a text: the generation config's, else the config's."""
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    values = value if isinstance(value, list) else [value]
    return frozenset(each for each in values if isinstance(each, int))


def padding_token(config: JsonObject) -> int:
    """Return the token that fills rows; 0 where the config has none. It is masked."""
    token = config.get("pad_token_id")
    return token if isinstance(token, int) and 0 <= token < 1 << 31 else 0  # some have -1


def first_tokens(config: JsonObject, generation: JsonObject) -> list[int]:
    """Return what the decoder of an encoder-decoder begins with.

    Raises:
        ExportDirectoryError: Neither file tells.
    """
    settings = {**config, **generation}
    start = settings.get("decoder_start_token_id")
    start = settings.get("bos_token_id") if start is None else start
    if not isinstance(start, int) or not 0 <= start < 1 << 31:
        msg = f"the config has no token that the decoder begins with: {start!r}"
        raise ExportDirectoryError(msg, hint="Set decoder_start_token_id in hf/config.json.")
    key = "forced_bos_token_id"
    forced = settings.get(key)
    if forced is None:
        return [start]
    rows = forced if isinstance(forced, list) else [forced]
    return [start, *(whole_number({key: each}, key) for each in rows)]
