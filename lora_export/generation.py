"""Text from an export: its tokenizer, one of its graphs, its stop tokens; no torch.

A decoder continues a prompt. An encoder-decoder reads it in the encoder, and its decoder begins
with ``decoder_start_token_id`` (and ``forced_bos_token_id`` where the generation config has one).
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.base.errors import (
    ExportDirectoryError,
    InputError,
    MissingRuntimeError,
    UnsupportedError,
    UsageError,
)
from lora_export.base.files import resolve_inside
from lora_export.base.manifest import read_manifest
from lora_export.runtime.generate import Sampling, generate
from lora_export.runtime.opening import open_runner
from lora_export.runtime.ort_decoder import OrtDecoder
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["Continuation", "continue_texts", "continues"]

_POSITION_KEYS: Final = ("max_position_embeddings", "n_positions", "n_ctx")
_TASKS: Final = ("text-generation", "text2text-generation")
_UNFINISHED: Final = "\ufffd"
"""What a tokenizer makes of bytes that are not yet a character."""


@dataclass(frozen=True)
class Continuation:
    """What was generated for one prompt.

    Attributes:
        prompt: The prompt.
        text: The text after it, or that an encoder-decoder makes of it, without the stop token.
        tokens: The token ids, the stop token included.
        stopped: Whether a stop token ended it.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    stopped: bool


def continue_texts(
    root: Path,
    prompts: Sequence[str],
    *,
    adapter: str | None,
    max_new_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> list[Continuation]:
    """Continue `prompts` with a graph of an export, or answer them with an encoder-decoder.

    Args:
        root: The export directory.
        prompts: The texts, run as one batch.
        adapter: Whose graph; None for the base's.
        max_new_tokens: The most tokens of each continuation; what the model has positions for
            bounds it too.
        sampling: How tokens are chosen.
        on_text: Given the text of the first prompt's continuation, piece by piece.

    Raises:
        UsageError: The export has no such adapter, or a prompt is longer than the model.
        UnsupportedError: The export is of a task that makes no text of text, or without a cache.
        ExportDirectoryError: The export is damaged.
    """
    manifest = read_manifest(root)
    if adapter is not None and adapter not in manifest.adapters:
        known = ", ".join(manifest.adapters) or "none"
        msg = f"{str(root)!r} has no adapter {adapter!r}"
        raise UsageError(msg, hint=f"It has: {known}.")
    if manifest.base.task not in _TASKS:
        msg = f"{str(root)!r} is an export for {manifest.base.task}, which makes no text of text"
        raise UnsupportedError(msg, hint=f"Generating needs the task {' or '.join(_TASKS)}.")
    tokenizer = _tokenizer(root)
    config, generation = (
        _settings(root, name) for name in ("config.json", "generation_config.json")
    )
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    stop = _stop_tokens(config, generation)
    padding = config.get("pad_token_id") or 0
    record = manifest.graphs.get(adapter or "base", manifest.graphs["base"])
    if record.encoder is None:
        limit = _positions_left(config, rows, max_new_tokens, manifest.base.cache_length)
        decoder = OrtDecoder(open_runner(root, manifest, adapter or "base"))
    else:
        _positions_left(config, rows, max_new_tokens)
        feeds = _padded_right(rows, padding)
        rows = [_first_tokens({**config, **generation})] * len(rows)
        limit = _positions_left(config, rows, max_new_tokens)
        decoder, _ = OrtEncoderDecoder(root, record).encode(feeds)
    found: list[list[int]] = [[] for _ in rows]
    told = ""
    for tokens in generate(
        decoder, rows, max_new_tokens=limit, sampling=sampling, stop=stop, padding=padding
    ):
        for row, token in zip(found, tokens, strict=True):
            if token is not None:
                row.append(token)
        if on_text is not None:
            text = tokenizer.decode([token for token in found[0] if token not in stop])
            if text.startswith(told) and not text.endswith(_UNFINISHED):
                on_text(text[len(told) :])
                told = text
    texts = [tokenizer.decode([token for token in row if token not in stop]) for row in found]
    if on_text is not None and texts[0].startswith(told):
        on_text(texts[0][len(told) :])
    return [
        Continuation(prompt, text, tuple(row), bool(row) and row[-1] in stop)
        for prompt, text, row in zip(prompts, texts, found, strict=True)
    ]


def continues(root: Path) -> bool:
    """Whether the text that the export makes follows its prompt: an encoder-decoder's does not."""
    return read_manifest(root).graphs["base"].encoder is None


def _padded_right(rows: Sequence[Sequence[int]], padding: int) -> dict[str, npt.NDArray[Any]]:
    """Return ``input_ids`` and ``attention_mask`` ``[batch, longest]`` of an encoder."""
    if not all(rows):
        msg = "a prompt has no tokens"
        raise UsageError(msg, hint="Give at least one word.")
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), padding, np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _first_tokens(settings: dict[str, Any]) -> list[int]:
    """Return what the decoder of an encoder-decoder begins with."""
    start = settings.get("decoder_start_token_id")
    start = settings.get("bos_token_id") if start is None else start
    if not isinstance(start, int):
        msg = f"the config tells no token that the decoder begins with: {start!r}"
        raise ExportDirectoryError(msg, hint="Set decoder_start_token_id in hf/config.json.")
    forced = settings.get("forced_bos_token_id")
    return [start] if forced is None else [start, int(forced)]


def _tokenizer(root: Path) -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        msg = "a prompt has to be tokenized, and tokenizers is not installed"
        raise MissingRuntimeError(msg, hint="Install it with: pip install tokenizers")
    import tokenizers

    path = resolve_inside(root, "hf/tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        msg = f"cannot read the tokenizer {str(path)!r}: {error}"
        raise InputError(msg, hint="The base needs a tokenizer.json beside its weights.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _settings(root: Path, name: str) -> dict[str, Any]:
    """Return a file of settings beside the tokenizer; empty where there is none."""
    path = resolve_inside(root, f"hf/{name}")
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{str(path)!r} is damaged: {error}"
        raise ExportDirectoryError(msg, hint="Export again.") from error
    return table if isinstance(table, dict) else {}


def _stop_tokens(config: dict[str, Any], generation: dict[str, Any]) -> frozenset[int]:
    """Return the tokens that end a text: the generation config's, else the config's."""
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    values = value if isinstance(value, list) else [value]
    return frozenset(each for each in values if isinstance(each, int))


def _positions_left(
    config: dict[str, Any],
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    room: int | None = None,
) -> int:
    """Return how many tokens may follow, where the positions of model or static cache end."""
    relative = "relative_attention_num_buckets" in config  # T5: any length, whatever n_positions
    keys = () if relative else _POSITION_KEYS
    positions = next((int(config[key]) for key in keys if config.get(key)), None)
    longest = max(map(len, rows), default=0)
    limit = max_new_tokens
    for what, most in (("the model", positions), ("the static cache", room)):
        if most is None:
            continue
        if longest > most:
            msg = f"a prompt has {longest} tokens; {what} has positions for {most}"
            raise UsageError(msg, hint="Give a shorter prompt.")
        limit = min(limit, most - longest + 1)
    return limit
