"""Seeded inputs: several batch sizes and lengths, with padding where a batch has rows to pad.

Which inputs there are, their dtypes and axes, is read from the graph; the config bounds the values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.config_numbers import text_settings, whole_number
from lora_export.core.dtypes import by_name
from lora_export.core.errors import UnsupportedError
from lora_export.ondevice.judge.decoding import DECODER_IDS, PAST, WRITE_INDICES, on_static_cache
from lora_export.ondevice.judge.golden_files import Case
from lora_export.weights.positions import longest_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.manifest import Manifest
    from lora_export.graph.spec.signature import Input, Signature

__all__ = [
    "CASES",
    "DECODER_IDS",
    "GOLDEN_CASES",
    "common_vocab_size",
    "longest_text",
    "make_cases",
    "text_feeds",
    "with_buffers",
]

Array = npt.NDArray[Any]

CASES: Final = ((1, 8), (2, 24), (1, 1), (3, 33), (4, 64), (1, 128))
"""Batch and length of each input; lengths are cut to what the model takes."""

GOLDEN_CASES: Final = 2
"""How many of them are kept as golden inputs."""

_VOCABULARY_KEYS: Final = ("vocab_size", "n_vocab")


def make_cases(
    config: Mapping[str, Any],
    signature: Signature,
    *,
    seed: int,
    left_padding: bool,
    shapes: Sequence[tuple[int, int]] = CASES,
    past: int = 0,
    padded: bool = True,
    vocab_size: int | None = None,
) -> list[Case]:
    """Return seeded inputs for a model.

    Args:
        config: The model's config; tells vocabulary, positions and padding.
        signature: The interface of the graph.
        seed: Seeds the values.
        left_padding: Whether padding comes first, as decoders expect it.
        shapes: Batch and length of each input; a length counts where the graph has one.
        past: Positions that a decoder's cache holds before the input.
        padded: Whether the rows of a batch after the first are shorter.
        vocab_size: The number of tokens, where it is not the config's.

    Raises:
        UnsupportedError: The graph has an input or an axis that is not known here.
    """
    random = np.random.default_rng(seed)
    config = text_settings(config)
    if vocab_size is not None:
        config = {**config, "vocab_size": vocab_size, "decoder_vocab_size": vocab_size}
    longest = longest_text(config)
    return [
        _make_case(
            random,
            config,
            signature,
            batch,
            min(length, longest),
            left_padding=left_padding,
            past=past,
            padded=padded,
        )
        for batch, length in shapes
    ]


def _make_case(
    random: np.random.Generator,
    config: Mapping[str, Any],
    signature: Signature,
    batch: int,
    length: int,
    *,
    left_padding: bool,
    past: int,
    padded: bool,
) -> Case:
    vocabulary = _vocab_size(config)
    padding = config.get("pad_token_id")
    padding = padding if isinstance(padding, int) and 0 <= padding < vocabulary else 0
    ids = random.integers(0, vocabulary, (batch, length))
    ids[ids == padding] = (padding + 1) % vocabulary
    mask = np.ones((batch, length), np.int64)
    # the first row is full, the others end (or begin) earlier
    for row in range(1, batch if padded else 1):
        kept = max(1, length - row * length // (batch + 1))
        hidden = slice(0, length - kept) if left_padding else slice(kept, length)
        mask[row, hidden] = 0
        ids[row, hidden] = padding
    types = random.integers(0, max(1, whole_number(config, "type_vocab_size", 2)), (batch, length))
    known: dict[str, Array] = {
        "input_ids": ids,
        "attention_mask": np.concatenate([np.ones((batch, past), np.int64), mask], axis=1),
        "token_type_ids": types * mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0) + past,
    }
    if WRITE_INDICES in signature.input_names:
        known = on_static_cache(known, written=past, length=_cache_length(signature))
    if any(each.name == DECODER_IDS for each in signature.inputs):
        written = max(1, length * 2 // 3)  # another length than the encoder's
        own = whole_number(config, "decoder_vocab_size", vocabulary)  # Marian may have two
        decoder_ids = random.integers(0, own, (batch, written))
        # M2M100 counts positions by the tokens that are no padding, with a cache by all of them
        decoder_ids[decoder_ids == padding] = (padding + 1) % own
        known[DECODER_IDS] = decoder_ids
    feeds = _filled(signature, known, (batch, length), random)
    positions = mask if "input_ids" in feeds else np.ones((batch, 1))
    if DECODER_IDS in feeds:
        positions = np.ones_like(feeds[DECODER_IDS])
    return with_buffers(Case(feeds, positions.astype(bool)), signature, past=past)


def common_vocab_size(config: Mapping[str, Any], manifest: Manifest) -> int | None:
    """Return a number of tokens that every graph of an export has; None where all have the base's.

    Args:
        config: The base's config.
        manifest: The manifest of the export.
    """
    sizes = [each.vocab_size for each in manifest.adapters.values() if each.vocab_size is not None]
    text = text_settings(config)
    return min(*sizes, _vocab_size(text)) if sizes else None


def _vocab_size(config: Mapping[str, Any]) -> int:
    return next((whole_number(config, key) for key in _VOCABULARY_KEYS if config.get(key)), 2)


def text_feeds(signature: Signature, ids: Array, mask: Array, types: Array) -> dict[str, Array]:
    """Return a graph's inputs for texts, ``[batch, length]`` each; an empty past where it has one.

    Raises:
        UnsupportedError: The graph has an input that text does not fill.
    """
    known = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
    }
    if WRITE_INDICES in signature.input_names:
        known = on_static_cache(known, written=0, length=_cache_length(signature))
    strange = [
        each.name
        for each in signature.inputs
        if each.name not in known and not each.name.startswith(PAST)
    ]
    if strange and strange != [DECODER_IDS]:
        msg = f"a data set cannot fill the graph's input {strange[0]!r}"
        raise UnsupportedError(msg, hint="Data sets are texts; leave --dataset out.")
    kept = replace(signature, inputs=tuple(i for i in signature.inputs if i.name not in strange))
    feeds = _filled(kept, known, ids.shape, np.random.default_rng(0))
    return dict(with_buffers(Case(feeds, mask.astype(bool)), kept).feeds)


def _filled(
    signature: Signature,
    known: Mapping[str, Array],
    shape: tuple[int, ...],
    random: np.random.Generator,
) -> dict[str, Array]:
    """Return values for all inputs, seeded where none is known; `with_buffers` fills a cache."""
    sizes = {"batch": shape[0], "sequence": shape[1], "past_sequence": 0}
    return {
        each.name: known[each.name].astype(by_name(each.dtype).numpy)
        if each.name in known
        else _numbers(random, each, sizes)
        for each in signature.inputs
        if not each.name.startswith(PAST)
    }


def _cache_length(signature: Signature) -> int:
    """Return the positions of a static cache."""
    mask = next(each for each in signature.inputs if each.name == "attention_mask")
    length = mask.axes[1]
    if not isinstance(length, int):
        msg = f"the graph takes {WRITE_INDICES}, but its cache has no fixed length"
        raise UnsupportedError(msg, hint="To build it without verification, pass --no-verify.")
    return length


def _numbers(random: np.random.Generator, given: Input, sizes: Mapping[str, int]) -> Array:
    """Return normally distributed values for an input of numbers: pixels, features, no past."""
    dtype = by_name(given.dtype)
    strange = next((a for a in given.axes if isinstance(a, str) and a not in sizes), None)
    if strange is not None or not dtype.floating:
        what = f"axis {strange!r} of input" if strange is not None else f"{given.dtype} input"
        msg = f"no values are known for the {what} {given.name!r}"
        raise UnsupportedError(msg, hint="To build it without verification, pass --no-verify.")
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in given.axes]
    if given.name.startswith(PAST):
        shape, whole = shape[-1:], shape
        return np.broadcast_to(random.standard_normal(shape).astype(dtype.numpy), whole)
    return random.standard_normal(shape).astype(dtype.numpy)


def with_buffers(case: Case, signature: Signature, *, past: int = 0) -> Case:
    """Return `case` with the inputs of a cache that it lacks.

    A static cache is full of numbers that nobody has written, which must not be seen; all its
    positions hold the same ones, so that they take no memory before they are run.
    """
    random = np.random.default_rng(0)
    sizes = {"batch": len(case.mask), "past_sequence": past}
    missing = {
        each.name: _numbers(random, each, sizes)
        for each in signature.inputs
        if each.name.startswith(PAST) and each.name not in case.feeds
    }
    return replace(case, feeds={**case.feeds, **missing})
