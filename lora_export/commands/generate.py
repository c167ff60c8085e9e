"""Text from an export: one of its graphs, with the tokenizer and stop tokens of its adapter.

A decoder continues a prompt. An encoder-decoder reads it in the encoder, and its decoder begins
with ``decoder_start_token_id`` (and ``forced_bos_token_id`` where the generation config has one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.adapter_companions import companions_of, folder_of
from lora_export.exports.integrity_checks import require_files
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.runtime.open_adapter_graph import open_runner
from lora_export.runtime.ort_decoder import OrtDecoder
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder
from lora_export.runtime.text_generation import Sampling, generate
from lora_export.runtime.tokens import (
    READ,
    first_tokens,
    open_tokenizer,
    padded,
    padding_token,
    read_settings,
    require_rows,
    stop_tokens,
)
from lora_export.weights.positions import count_positions, long_rope_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.core.manifest import Manifest
    from lora_export.runtime.text_tokenizer import TextTokenizer

__all__ = ["Continuation", "continue_texts", "continues"]

_TASKS: Final = ("text-generation", "text2text-generation")
_UNFINISHED: Final = "\ufffd"
"""What a tokenizer makes of bytes that are not yet a character."""


@dataclass(frozen=True)
class Continuation:
    """The text that was generated for one prompt.

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
    export_dir: Path,
    prompts: Sequence[str],
    *,
    adapter: str | None,
    max_new_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> list[Continuation]:
    """Continue `prompts` with a graph of an export, or answer them with an encoder-decoder.

    Args:
        export_dir: The export directory.
        prompts: The texts, run as one batch.
        adapter: Whose graph; None for the base's.
        max_new_tokens: The most tokens of each continuation; what the model has positions for
            bounds it too.
        sampling: How tokens are chosen.
        on_text: Given the text of the first prompt's continuation, piece by piece.

    Raises:
        UsageError: The export has no such adapter, or a prompt is longer than the model.
        UnsupportedError: The export is of a task that generates no text, or has no cache.
        ExportDirectoryError: The export is damaged.
    """
    manifest = read_manifest(export_dir)
    if adapter is not None and adapter not in manifest.adapters:
        known = ", ".join(manifest.adapters) or "none"
        msg = f"{str(export_dir)!r} has no adapter {adapter!r}"
        raise UsageError(msg, hint=f"It has: {known}.")
    if manifest.base.task not in _TASKS:
        msg = f"{str(export_dir)!r} is an export for {manifest.base.task}, which generates no text"
        raise UnsupportedError(msg, hint=f"Generating needs the task {' or '.join(_TASKS)}.")
    require_files(export_dir, manifest, _small_files(manifest, adapter), hashed=True)
    files = companions_of(export_dir, manifest, adapter)
    tokenizer = open_tokenizer(files)
    tokenizer.cut_to(None)
    config, generation = read_settings(files)
    rows = [each.ids for each in tokenizer.encode(prompts)]
    require_rows(rows, config)
    stop = stop_tokens(config, generation)
    padding = padding_token(config)
    record = manifest.graphs.get(adapter or BASE_GRAPH, manifest.base_graph)
    if record.encoder is None:
        limit = _positions_left(config, rows, max_new_tokens, manifest.base.cache_length)
        runner = open_runner(export_dir, manifest, adapter or BASE_GRAPH)
        decoder = OrtDecoder(runner, length=max(map(len, rows)) + limit)
    else:
        _positions_left(config, rows, max_new_tokens)
        ids, mask = padded(rows, padding)
        feeds = {"input_ids": ids, "attention_mask": mask}
        rows = [first_tokens(config, generation)] * len(rows)
        limit = _positions_left(config, rows, max_new_tokens)
        decoder, _ = OrtEncoderDecoder(export_dir, record).encode(feeds)
    before = rows if record.encoder is None else [[] for _ in rows]
    found: list[list[int]] = [[] for _ in rows]
    told = ""
    for tokens in generate(
        decoder, rows, max_new_tokens=limit, sampling=sampling, stop=stop, padding=padding,
        switch=long_rope_threshold(config),
    ):  # fmt: skip
        for row, token in zip(found, tokens, strict=True):
            if token is not None:
                row.append(token)
        if on_text is not None:
            text = _text_behind(tokenizer, before[0], found[0], stop)
            if text.startswith(told) and not text.endswith(_UNFINISHED):
                on_text(text[len(told) :])
                told = text
    texts = [
        _text_behind(tokenizer, ids, row, stop) for ids, row in zip(before, found, strict=True)
    ]
    if on_text is not None and texts[0].startswith(told):
        on_text(texts[0][len(told) :])
    return [
        Continuation(prompt, text, tuple(row), bool(row) and row[-1] in stop)
        for prompt, text, row in zip(prompts, texts, found, strict=True)
    ]


def _text_behind(
    tokenizer: TextTokenizer, before: Sequence[int], tokens: Sequence[int], stop: Collection[int]
) -> str:
    """Return the text of `tokens` as it continues that of `before`.

    By themselves they may have another: what a tokenizer with word boundaries (SentencePiece,
    WordPiece) decodes begins without the space that lies between the two.
    """
    shown = [token for token in tokens if token not in stop]
    begun = tokenizer.decode(list(before))
    whole = tokenizer.decode([*before, *shown])
    if whole.startswith(begun):
        return whole[len(begun) :]
    return tokenizer.decode(shown)


def continues(export_dir: Path) -> bool:
    """Whether the text that the export makes follows its prompt: an encoder-decoder's does not."""
    return read_manifest(export_dir).base_graph.encoder is None


def _small_files(manifest: Manifest, adapter: str | None) -> list[str]:
    """Return the graph that is run, the pack that it is given, and what is read of its text."""
    own = manifest.adapters.get(adapter or "")
    beside = own.companions.files if own is not None and own.companions is not None else []
    read = [f"{folder_of(adapter or '')}/{name}" for name in READ if name in beside]
    return [*read, *_graph_files(manifest, adapter)]


def _graph_files(manifest: Manifest, adapter: str | None) -> list[str]:
    stored = stored_adapter(manifest, adapter or BASE_GRAPH)
    packs = [] if stored.pack is None else [stored.pack]
    return [*manifest.graphs[stored.graph].graph_files, *packs]


def _positions_left(
    config: JsonObject,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    room: int | None = None,
) -> int:
    """Return how many tokens may follow, where the positions of model or static cache end."""
    relative = "relative_attention_num_buckets" in config  # T5: any length, whatever n_positions
    positions = None if relative else count_positions(config)
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
